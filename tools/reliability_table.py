"""`python -m tools.reliability_table [FOLDER ...]`: the reliability matrix from its record.

Takes what tests left with `--matrix-out FOLDER` into tests/reliability/record.json, line by
line, and writes docs/reliability.md from it. Without a folder only the page is written.
"""

import json
import platform
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tests" / "reliability" / "record.json"
PAGE = ROOT / "docs" / "reliability.md"

TITLES = {
    "N": "The network",
    "F": "Parts that fail",
    "H": "Hostile input",
    "L": "Load",
}
ABSENT = "not covered"
COLUMNS = (
    "| case | what happens | measured | witness | wanted | verdict |\n|---|---|---|---|---|---|\n"
)
WITNESS = re.compile(
    r";? ?witness p95 (\d+) -> (\d+) ms(?: \((?:busy )?machine:? late by (?:up to )?(\d+) ms\))?"
)
CASES = {
    "N1": "1 % of the packets lost",
    "N2": "5 % lost, 50 ms round trip",
    "N3": "10 % lost",
    "N4": "20 % lost",
    "N5": "nothing gets through for a while",
    "N6": "delay that swings",
    "N7": "5 % of the packets overtaken, by so many",
    "N8": "10 % of the packets twice",
    "N9": "2 Mbit/s, then 300 kbit/s, then 2 Mbit/s",
    "N10": "a round trip of 600 ms",
    "N11": "a caller is killed without a goodbye",
    "N12": "the caller's port closes, ICMP errors return",
    "N13": "the caller's address changes",
    "N14": "a restart of ICE is asked for",
    "N15": "the handshake gets no reply, has a wrong fingerprint, or loses a datagram",
    "N16": "an offer names no address, only mDNS names",
    "F1": "the detector raises",
    "F2": "the detector hangs, in Python or in native code",
    "F3": "the inference process is killed or stopped",
    "F4": "the device is gone or out of memory",
    "F5": "a burst of decoder errors",
    "F6": "frames without content",
    "F7": "sizes, odd ones too, change in mid-stream",
    "F8": "media time and sequence numbers wrap or jump by an hour",
    "F9": "the wall clock is set by an hour",
    "F10": "a stream's source leaves",
    "F11": "a viewer cannot follow",
    "F12": "a listener of detections reads nothing",
    "F13": "the disk for recordings is full",
    "F14": "no file is left to open",
    "F15": "memory is used up",
    "F16": "SIGTERM",
    "F17": "SIGKILL and a new start",
    "F18": "the database is away",
    "F19": "a call ends while it connects, while it decodes, twice",
    "F20": "a call ends with frames waiting for its decoder",
    "H1": "empty datagrams from a stranger",
    "H2": "oversize datagrams, each first byte",
    "H3": "DTLS alerts and hellos from a stranger",
    "H4": "damaged STUN from a stranger",
    "H5": "nonsense as SRTP from a stranger, as RTP inside it from the caller",
    "H6": "nonsense as RTCP inside SRTP",
    "H7": "floods of requests for packets and key frames",
    "H8": "300 sources in one call",
    "H9": "offers of browsers, FFmpeg, OBS and GStreamer, damaged",
    "H10": "huge offers",
    "H11": "malformed SCTP",
    "H12": "damaged media inside SRTP",
    "H13": "slow heads and bodies, idle sockets",
    "H14": "requests that other sites make",
    "H15": "keys and tokens that are none",
    "H16": "line ends, colours and length in what is logged",
    "H17": "a relay towards the network behind it",
    "H18": "paths in names",
    "L4": "four times more pictures than the detector can do",
    "L6": "calls that never connect",
    "L7": "200 offers within a second",
    "L8": "calls that come and go, as the loop feels them",
}


def main(arguments: Sequence[str]) -> int:
    if set(arguments) & {"-h", "--help"}:
        print(__doc__)
        return 0
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    for folder in arguments:
        if not Path(folder).is_dir():
            print(f"{folder}: no such folder; --matrix-out of the tests makes it", file=sys.stderr)
            return 1
        print(*take(record, Path(folder)), sep="\n")
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    RECORD.write_text(text, encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(record['lines'])} lines")
    return 0


def take(record: dict[str, Any], folder: Path) -> list[str]:
    """Replace what the folder has news of; gives what to tell. A case that was not covered and now
    is needs no word of that any more."""
    lines = {line["case"]: line for line in record["lines"]}
    renewed: set[str] = set()
    telling: list[str] = []
    for path in sorted(folder.glob("*.json")):
        line = json.loads(path.read_text(encoding="utf-8"))
        if "case" in line:
            lines[line["case"]] = line
            renewed.add(line["case"])
            continue
        # It ended before it could measure: what it measured once is not true today.
        cases = {case for case in lines if lines[case]["test"] == line["test"]} - renewed
        lines |= {case: lines[case] | line for case in cases}
        renewed |= cases
        telling += [] if cases else [f"without a line: {line['test']}: {line['note']}"]
    record["lines"] = sorted(lines.values(), key=lambda line: order(line["case"]))
    told = {order(case)[:2] for case in lines}
    for case in [case for case in record["elsewhere"] if order(case)[:2] in told]:
        del record["elsewhere"][case]
    record["python"] = platform.python_version()
    telling += [f"as it was before: {case}" for case in lines if case not in renewed]
    telling += [
        f"{line['verdict']}: {line['case']}"
        for line in lines.values()
        if line["verdict"] != "holds"
    ]
    return telling


def order(case: str) -> tuple[int, int, str]:
    """N before F before H before L, then by number, then by the rest of the name."""
    found = re.match(r"([A-Z])(\d+)(.*)", case)
    assert found is not None, case
    return list(TITLES).index(found[1]), int(found[2]), found[3]


def page(record: Mapping[str, Any]) -> str:
    """The whole of docs/reliability.md."""
    verdicts = Counter(line["verdict"] for line in record["lines"])
    counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    counted = counted.replace("holds", "hold")
    parts = [HEAD.format(measured=record["measured"], lines=len(record["lines"]), counted=counted)]
    for letter, title in TITLES.items():
        parts += [f"## {title}\n\n", COLUMNS]
        rows: dict[tuple[int, int, str], str] = {}
        for line in record["lines"]:
            if line["case"].startswith(letter):
                rows[order(line["case"])] = _row(line)
        for case, entry in record["elsewhere"].items():
            if case.startswith(letter):
                rows[order(case)] = _elsewhere(case, entry)
        parts += [rows[key] for key in sorted(rows)]
        parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n"


def _row(line: Mapping[str, Any]) -> str:
    figure, witness = line["figure"], ""
    if found := WITNESS.search(figure):
        figure = figure[: found.start()] + figure[found.end() :]
        witness = f"{found[1]} → {found[2]}" + (f" (late by {found[3]})" if found[3] else "")
    seed = "" if line["seed"] is None else f" Seed {line['seed']}."
    note = f" ({line['note']})" if line["note"] else ""
    return _cells(
        line["case"], _what(line["case"]), f"{figure}{note}.{seed}", witness, line["threshold"],
        line["verdict"],
    )  # fmt: skip


def _elsewhere(case: str, entry: Mapping[str, Any]) -> str:
    tests = ", ".join(f"`{test}`" for test in entry["tests"])
    told = entry["told"] + (f": {tests}" if tests else "")
    return _cells(case, _what(case), told, "", entry["wanted"], "holds" if tests else ABSENT)


def _what(case: str) -> str:
    found = re.match(r"[A-Z]\d+", case)
    assert found is not None, case
    return CASES[found[0]]


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |\n"


HEAD = """\
# Reliability, case by case

What a camera server meets in months on open networks: bad paths, parts that fail, strangers and
crowds. Each case is a test with a target, and most have a **witness**: a second caller on a clear
path beside the one that suffers, who must not feel it. Now {lines} measurements: {counted}.

This page is written by `python -m tools.reliability_table` from the records of those tests
(`tests/reliability/record.json`); do not edit it. What is promised to whom, and what is not
covered, is in [security.md](security.md); how much a server can carry is measured by the
[benches](../bench/README.md).

## To run it

```sh
make test                      # with the short cases, a few minutes in all
make matrix                    # every case, some twenty minutes, and this page from it
make matrix ARGS="-k N2"       # some of them; the other lines stay as they are
make fuzz ARGS="--seconds 60"  # beside it: every parser, coverage-guided (atheris)
```

`make matrix` needs two cores and, for figures, a machine that does nothing else. F13 needs root (a
small file system), F18 PostgreSQL and H17 coturn, which `make` installs on Debian where it may.

## To read it

- **Witness**: its 95th percentile from glass to glass in ms, before → during. It may become a fifth
  longer, and 8 ms for chance; it may not stand still for over 500 ms, nor lose over 15 % of its
  pictures.
- **Late by**: a process that only sleeps woke so many ms too late at worst, by the test's own load
  on the same cores or by other work. It is told where a hundredth of its samples was over 2 ms
  late; the witness's bounds are then widened by ten times that, once for each thread and socket on
  a picture's way. With a hundredth over 8 ms late, a case that misses its target has no verdict.
- `make test` and `make test-long` judge everything but the witness's percentile: a figure wants a
  machine that does nothing else.
- **Verdict**: *holds*; *missed*, with the figure and what was missed; *no verdict*; or *failed*,
  where the test ended before it could measure.
- The server is a process of its own in H1 to H6, H9, H10, H13 to H18, F11, F14, F16, F17, L6 and
  L7. Elsewhere it shares one, and its event loop, with the callers and the bad network: ages hold
  the callers' own share.
- The bad network is a relay between real peers (`bench/impairment.py`): seeded, no root. *Up* is
  from the caller to the server.
- "% decoded" counts pictures at the end of the bad direction. Fewer may be shown: those that waited
  behind a repair come at once, and the newest wins.
- What is random has its seed in the table: the same losses, floods and damage again.

{measured}

"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
