"""From records to the parts of the page: each kind of record has its charts and tables. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from bench.record import Record
from bench.reports.charts import Bar, Line, Step, bars, distribution, lines, short, waterfall
from bench.statistics import median
from bench.subjects import OURS, SUBJECTS
from bench.table import COMPARE_HEAD, call_label, compare_rows, delay_rows

TONES: Final = ("t1", "t2", "t3", "t4", "t5", "t6")
STAGE_TONES: Final = {"infer": "t1", "encode": "t2", "decode": "t2"}
TIMES: Final = "\N{MULTIPLICATION SIGN}"
SUMS: Final = ("total", "own")


@dataclass(frozen=True, slots=True)
class Figure:
    """One chart with what it says; `key` names its file when it is drawn alone."""

    key: str
    title: str
    svg: str
    note: str = ""

    def card(self) -> str:
        note = f"<p>{escape(self.note)}</p>" if self.note else ""
        return f'<figure class="card"><h3>{escape(self.title)}</h3>{self.svg}{note}</figure>'


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a sentence, charts, then tables as HTML."""

    title: str
    lead: str
    figures: Sequence[Figure] = ()
    tables: Sequence[str] = ()


def tone_of(subject: str) -> str:
    return TONES[list(SUBJECTS).index(subject) % len(TONES)]


def compare_section(record: Record) -> Section:
    """What a user would take instead, beside us."""
    figures = []
    for count, subjects in record.summary["clients"].items():
        people = _people(count)
        ratios = record.summary["ratios"][count]
        rows = [
            Bar(
                SUBJECTS[name].title,
                told["worst_client_ms"]["p50"],
                told["worst_client_ms"]["p95"],
                _times(ratios.get(name)),
                tone_of(name),
            )
            for name, told in subjects.items()
            if told["worst_client_ms"]["p50"] is not None
        ]
        if rows:
            silent = [
                SUBJECTS[name].title
                for name, told in subjects.items()
                if told["worst_client_ms"]["p50"] is None
            ]
            title = f"Delay with {people}"
            figures.append(
                Figure(
                    f"compare-{count}",
                    title,
                    bars(title, rows),
                    "The worst client of each round; medians over the rounds."
                    + "".join(f" {name} has none: no picture came back." for name in silent),
                )
            )
        series = _timelines(record, count)
        if series:
            title = f"How the delay goes on with {people}"
            svg = lines(title, series, "seconds of the window", "ms, p50 of each second")
            figures.append(
                Figure(
                    f"compare-time-{count}",
                    title,
                    svg,
                    "A queue that never shrinks climbs; the worst client of the last round.",
                )
            )
    rows_of_table = compare_rows(record)
    settings = record.settings
    return Section(
        "Beside what you would take instead",
        f"The same headless clients, pictures, model and machine; rounds: {settings['runs']}, of "
        f"{settings['seconds']:g} s each: {settings['size']} at {settings['fps']:g} a second, "
        f"{settings['codec']}. Ratios are taken within a round.",
        figures,
        [
            table(
                COMPARE_HEAD, rows_of_table, ours=lambda row: row[1] == SUBJECTS[OURS].title, lead=1
            ),
            _proof_table(record),
        ],
    )


def distribution_section(records: Sequence[Record]) -> Section | None:
    """How often a picture takes how long."""
    figures = []
    for number, record in enumerate(records):
        if record.bench == "compare":
            for count in record.summary["clients"]:
                series = [
                    Line(SUBJECTS[name].title, points, tone_of(name))
                    for name in record.summary["clients"][count]
                    if (points := _quantiles(_runs(record, count, name)))
                ]
                if series:
                    title = f"Distribution, {_people(count)}"
                    svg = distribution(title, series)
                    figures.append(Figure(f"distribution-compare-{count}", title, svg))
        elif record.bench == "glass":
            points = _quantiles(record.runs)
            if points:
                label = _plain_label(record)
                svg = distribution(label, [Line("", points, "t1")])
                figures.append(Figure(f"distribution-{number}", f"Distribution: {label}", svg))
    if not figures:
        return None
    lead = "Which share of the pictures took at most so long. Steep is steady."
    return Section("Distributions", lead, figures)


def glass_section(records: Sequence[Record]) -> Section | None:
    """Calls of headless peers: delays side by side, each over time."""
    found = [record for record in records if record.bench == "glass"]
    if not found:
        return None
    rows = [
        Bar(
            _plain_label(record),
            record.summary["worst_client_ms"]["p50"],
            record.summary["worst_client_ms"]["p95"],
            f"{record.summary['fps_slowest']:.0f} fps",
        )
        for record in found
        if record.summary["worst_client_ms"]["p50"] is not None
    ]
    title = "Glass to glass"
    note = "From the picture handed to the encoder until the returned one is read."
    figures = [Figure("glass", title, bars(title, rows), note)] if rows else []
    for number, record in enumerate(found):
        series = [
            Line(client["name"], points, TONES[index % len(TONES)])
            for index, client in enumerate(record.runs[-1]["clients"])
            if (points := [(s["at_s"], s["p50"]) for s in client.get("seconds_ms") or ()])
        ]
        if series:
            label = _plain_label(record)
            svg = lines(label, series, "seconds of the window", "ms, p50 of each second")
            figures.append(Figure(f"glass-time-{number}", f"Over time: {label}", svg))
    return Section("Calls", "Headless clients of the started server.", figures)


def stage_section(records: Sequence[Record]) -> Section | None:
    """Where the time goes in the server, and what the work costs without one."""
    figures = []
    for number, record in enumerate(records):
        if record.bench == "glass":
            label, stages = (
                _plain_label(record),
                record.summary.get("server_stages_ms") or {},
            )
            figures += _waterfall(f"stages-{number}", f"In the server: {label}", stages)
        elif record.bench == "compare":
            for count, subjects in record.summary["clients"].items():
                stages = subjects.get(OURS, {}).get("server_stages_ms") or {}
                figures += _waterfall(
                    f"stages-compare-{count}", f"In Sightline, {_people(count)}", stages
                )
        elif record.bench in ("stages", "floor"):
            stages = record.summary["stages_ms"]
            figures += _waterfall(f"{record.bench}-{number}", f"Alone ({record.bench})", stages)
        floor = record.summary.get("floor") if record.bench in ("glass", "compare") else None
        if floor:
            times = record.summary.get("times_floor")
            note = "" if times is None else f"One call takes {times:.2f} times the sum."
            stages = {name: told for name, told in floor["stages_ms"].items() if name != "draw"}
            figures += _waterfall(
                f"floor-{number}", "The floor: the same work, no server", stages, note
            )
    if not figures:
        return None
    return Section(
        "Where the time goes",
        "Each stage's median, one after another as a picture meets them. Medians of parts need "
        "not add up to the median of the whole.",
        figures,
    )


def browser_section(records: Sequence[Record]) -> Section | None:
    figures = []
    for number, record in enumerate(r for r in records if r.bench == "browser"):
        rows = [
            Bar(
                name.capitalize(),
                told["latency_ms"]["p50"],
                told["latency_ms"]["p95"],
                f"{told['fps_received']:.0f} fps",
                TONES[index],
            )
            for index, (name, told) in enumerate(record.summary.items())
        ]
        title = f"Browsers, {record.settings['codec']}"
        note = "From the drawn bar code until the page is told that the picture is presented."
        figures.append(Figure(f"browser-{number}", title, bars(title, rows), note))
    if not figures:
        return None
    return Section("Real browsers", "Headless, on the server's own cores.", figures)


def sessions_section(records: Sequence[Record]) -> Section | None:
    figures = []
    for number, record in enumerate(r for r in records if r.bench == "sessions"):
        series = [
            Line(run["mode"], points, TONES[index])
            for index, run in enumerate(record.runs)
            if (points := [(s["clients"], s["p95_ms"]) for s in run["steps"] if s["p95_ms"]])
        ]
        title = "Calls at once"
        told = ", ".join(
            f"{found['sessions']}{'' if found['limit_found'] else ' or more'} in {mode}"
            for mode, found in record.summary.items()
        )
        svg = lines(
            title, series, "calls", "ms, p95 of the worst", limit=record.settings["budget_ms"]
        )
        figures.append(Figure(f"sessions-{number}", title, svg, f"Within the budget: {told}."))
    if not figures:
        return None
    return Section("How many calls", "One more each time until the budget breaks.", figures)


def soak_section(records: Sequence[Record]) -> Section | None:
    figures = []
    for number, record in enumerate(r for r in records if r.bench == "soak"):
        samples = record.runs[0]["samples"]
        minutes = f"{record.settings['minutes']:g} minutes"
        delays = [
            Line(name, [(s["at_s"] / 60, s[key]) for s in samples if s[key]], tone)
            for name, key, tone in (("p50", "p50_ms", "t1"), ("p95", "p95_ms", "t2"))
        ]
        memory = [
            Line("at a join", [(s["at_s"] / 60, s["held"]["rss_mib"]) for s in samples], "t3")
        ]
        if all("rss_least_mib" in s for s in samples):
            # Not in records of before 2026-12.
            least = [(s["at_s"] / 60, s["rss_least_mib"]) for s in samples]
            memory.append(Line("least since the last", least, "t1"))
        figures += [
            Figure(f"{key}-{number}", title, svg)
            for key, title, svg in (
                ("soak-delay", f"Delay over {minutes}", lines("delay", delays, "minutes", "ms")),
                (
                    "soak-memory",
                    f"Memory over {minutes}",
                    lines("memory", memory, "minutes", "MiB"),
                ),
            )
            if svg
        ]
    if not figures:
        return None
    return Section("Over time", "Calls stay while others join and leave.", figures)


def delay_table(records: Sequence[Record]) -> str:
    rows = [tuple(cell.replace("`", "") for cell in row) for row in delay_rows(records)]
    return table(("what", "p50 ms", "p95 ms", "frames a second"), rows) if rows else ""


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    ours: Callable[[Sequence[str]], bool] = lambda _row: False,
    lead: int = 0,
) -> str:
    """`lead`: the column that comes first, as a table's subject should."""
    order = [lead, *(index for index in range(len(head)) if index != lead)]
    top = "".join(f"<th>{escape(head[index])}</th>" for index in order)
    body = "".join(
        f"<tr{' class=ours' if ours(row) else ''}>"
        + "".join(f"<td>{escape(row[index])}</td>" for index in order)
        + "</tr>"
        for row in rows
    )
    return (
        '<div class="card wide scroll"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _proof_table(record: Record) -> str:
    """That each server really detects, and what it ran on."""
    rows = []
    last = list(record.summary["clients"])[-1]
    for name, seen in record.summary["detections"].items():
        verdict = {True: "real", False: "not seen", None: "nothing to see"}[seen["real"]]
        engine = record.summary["clients"][last].get(name, {}).get("engine") or {}
        ran = " ".join(str(engine[key]) for key in ("provider", "precision") if key in engine)
        rows.append(
            (
                SUBJECTS[name].title,
                verdict,
                f"{seen['found']} of {seen['expected']}",
                f"{seen['control']} of {seen['expected']}",
                f"{seen['pictures']}",
                ran or "-",
            )
        )
    head = ("boxes looked for in returned pictures", "verdict", "found", "found by chance")
    return table((*head, "pictures", "engine"), rows)


def _plain_label(record: Record) -> str:
    return call_label(record.settings).replace("`", "")


def _people(count: str) -> str:
    return "one client" if count == "1" else f"{count} clients at once"


def _times(ratios: Mapping[str, Any] | None) -> str:
    found = (ratios or {}).get("p50")
    return "" if found is None else f"{found['median']:.1f} times ours"


def _runs(record: Record, count: str, subject: str) -> list[Mapping[str, Any]]:
    return [
        run
        for run in record.runs
        if run["subject"] == subject and str(run["clients_at_once"]) == count
    ]


def _timelines(record: Record, count: str) -> list[Line]:
    found = []
    for name in record.summary["clients"][count]:
        runs = [run for run in _runs(record, count, name) if run.get("clients")]
        if not runs:
            continue
        worst: dict[int, float] = {}
        for client in runs[-1]["clients"]:
            for second in client.get("seconds_ms") or ():
                at = second["at_s"]
                worst[at] = max(second["p50"], worst.get(at, 0.0))
        if worst:
            found.append(Line(SUBJECTS[name].title, sorted(worst.items()), tone_of(name)))
    return found


def _quantiles(runs: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Delay against share, up to 99 %; the median of the clients and runs at each share."""
    told = [
        client["quantiles_ms"]
        for run in runs
        for client in run.get("clients") or ()
        if client.get("quantiles_ms")
    ]
    if not told:
        return []
    return [(median([q[share] for q in told]), float(share)) for share in range(1, 100)]


def _waterfall(key: str, title: str, stages: Mapping[str, Any], note: str = "") -> list[Figure]:
    steps = [
        Step(name, told["p50"], STAGE_TONES.get(name.split(" ")[0], "t4"))
        for name, told in stages.items()
        if name not in SUMS and told.get("p50") is not None
    ]
    return [Figure(key, title, waterfall(title, steps), note)] if steps else []


def headline(records: Sequence[Record]) -> list[tuple[str, str]]:
    """The few figures at the top: value and what it is."""
    tiles: list[tuple[str, str]] = []
    compared = next((record for record in records if record.bench == "compare"), None)
    glass = next((record for record in records if record.bench == "glass"), None)
    if compared is not None:
        for count, subjects in compared.summary["clients"].items():
            worst = subjects[OURS]["worst_client_ms"]
            if worst["p50"] is not None:
                people = _people(count)
                figure = f"{short(worst['p50'])} / {short(worst['p95'])}"
                tiles.append((figure, f"ms, p50 / p95, {people}, detection included"))
        for count, subjects in compared.summary["ratios"].items():
            known = {n: r["p50"]["median"] for n, r in subjects.items() if r["p50"] is not None}
            webrtc = {n: value for n, value in known.items() if SUBJECTS[n].speaks == "webrtc"}
            if webrtc:
                name, value = min(webrtc.items(), key=lambda item: item[1])
                people = _people(count)
                title = SUBJECTS[name].title
                tiles.append(
                    (
                        f"{short(value)}{TIMES}",
                        f"lower p50 than {title}, the nearest WebRTC peer, {people}",
                    )
                )
        if compared.summary.get("times_floor") is not None:
            times = f"{compared.summary['times_floor']:.2f}{TIMES}"
            tiles.append((times, "the floor: the same work without any server"))
    elif glass is not None and glass.summary["worst_client_ms"]["p50"] is not None:
        worst = glass.summary["worst_client_ms"]
        tiles.append(
            (
                f"{short(worst['p50'])} / {short(worst['p95'])}",
                f"ms, p50 / p95: {_plain_label(glass)}",
            )
        )
    for record in records:
        if record.bench == "sessions":
            tiles += [
                (f"{told['sessions']}{'' if told['limit_found'] else '+'} calls",
                 f"within {record.settings['budget_ms']:g} ms in {mode}")
                for mode, told in record.summary.items()
            ]  # fmt: skip
    return tiles[:6]
