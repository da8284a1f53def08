"""`python -m bench <command>`: measurements that write one JSON record each.

Exit codes: 0 measured; 1 measured, and the budget is passed; 2 wrong usage; 3 not measured.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bench.errors import BenchError, UsageError

if TYPE_CHECKING:
    from bench.record import Record

OK: Final = 0
OVER_BUDGET: Final = 1
WRONG_USAGE: Final = 2
NOT_MEASURED: Final = 3
RESULTS: Final = Path(__file__).parent / "results"

Result = TypeVar("Result")


SWITCH_INTERVAL_S = 0.0005


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        if getattr(options, "json", False):
            print(json.dumps({"bench": options.bench, "error": str(error)}))
        return WRONG_USAGE if isinstance(error, UsageError) else NOT_MEASURED
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return NOT_MEASURED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="bench", required=True, metavar="command")
    _add_glass(commands.add_parser("glass", help="delay from glass to glass, headless peers"))
    _add_browser(commands.add_parser("browser", help="delay from glass to glass, real browsers"))
    _add_sessions(commands.add_parser("sessions", help="how many calls stay within the budget"))
    _add_soak(commands.add_parser("soak", help="does the server stay as it was over time"))
    _add_stages(commands.add_parser("stages", help="each stage of a frame's way alone"))
    _add_echo(commands.add_parser("echo", help="a server that echoes, to know the floor"))
    return parser


def _add_glass(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Starts the server, calls it like browsers would and measures from the picture handed to "
        "the encoder to the returned picture decoded and read. Progress goes to standard error."
    )
    parser.set_defaults(command=_glass)
    add = parser.add_argument
    add("--clients", type=int, default=1, metavar="N", help="calls at the same time (1)")
    add("--fps", type=float, default=30.0, help="pictures per second each client sends (30)")
    add("--size", type=_size, default=(640, 480), metavar="WxH", help="picture size (640x480)")
    add("--codec", choices=("H264", "VP8"), default="H264", help="of both directions (H264)")
    add("--mode", choices=("exact", "smooth"), default="exact", help="of the calls (exact)")
    add("--clip", type=Path, metavar="FILE", help="a video to send; else the server's photographs")
    add("--seconds", type=float, default=10.0, help="measured time of each run (10)")
    add("--warmup", type=float, default=3.0, help="seconds before that, not measured (3)")
    add("--runs", type=int, default=1, help="runs, each with a new server; medians count (1)")
    add("--model", metavar="NAME", help="of the started server; else the server's own default")
    add("--no-detector", action="store_true", help="the started server passes video through")
    add("--url", help="measure a running server instead of starting one")
    add(
        "--against",
        choices=("server", "echo", "stock-echo"),
        default="server",
        help="what to start: the server, our transport alone, or plain aiortc (server)",
    )
    add(
        "--server-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument of the started server; repeatable, as --server-arg=--threads=1",
    )
    add("--no-channel", action="store_true", help="without the data channel: no stage times")
    add("--budget-ms", type=float, metavar="MS", help="exit 1 when the worst client's p95 passes")
    add("--json", action="store_true", help="the record as the last line of standard output")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where the record is written")


def _add_browser(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Calls the server from real browsers, headless: a canvas camera with the time as a bar "
        "code, measured until the page is told that the returned picture is presented."
    )
    parser.set_defaults(command=_browser)
    add = parser.add_argument
    add("--browser", choices=("chromium", "firefox", "both"), default="both", help="which (both)")
    add("--fps", type=float, default=30.0, help="pictures per second of the camera (30)")
    add("--size", type=_size, default=(640, 480), metavar="WxH", help="picture size (640x480)")
    add(
        "--codec",
        choices=("auto", "H264", "VP8"),
        default="auto",
        help="only this one; auto: what browser and server agree on (auto)",
    )
    add("--mode", choices=("exact", "smooth"), default="exact", help="of the call (exact)")
    add("--clip", type=Path, metavar="FILE", help="a video to send; else the server's photographs")
    add("--seconds", type=float, default=10.0, help="measured time of each run (10)")
    add("--warmup", type=float, default=4.0, help="seconds before that, not measured (4)")
    add("--runs", type=int, default=1, help="runs, each with a new server and browser (1)")
    add("--model", metavar="NAME", help="of the started server; else the server's own default")
    add("--no-detector", action="store_true", help="the started server passes video through")
    add("--url", help="measure a running server instead of starting one")
    add(
        "--server-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument of the started server; repeatable, as --server-arg=--threads=1",
    )
    add(
        "--page",
        action="store_true",
        help="through the product's own page and a fake camera that plays the clip, Chromium only",
    )
    add(
        "--camera",
        choices=("canvas", "track"),
        default="canvas",
        help="captured with the next repaint, or handed over at once, Chromium only (canvas)",
    )
    add(
        "--jitter-target-ms",
        type=float,
        default=0.0,
        metavar="MS",
        help="jitterBufferTarget of the page; below 0 leaves the browser's own (0)",
    )
    add(
        "--budget-ms", type=float, metavar="MS", help="exit 1 when the slowest browser's p95 passes"
    )
    add("--json", action="store_true", help="the record as the last line of standard output")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where the record is written")


def _add_sessions(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Measures one call more each time until the worst call is over the budget or the slowest "
        "one has too few pictures; a step that breaks is measured twice. The figure is the largest "
        "number of calls that held."
    )
    parser.set_defaults(command=_sessions)
    add = parser.add_argument
    add("--mode", choices=("exact", "smooth", "both"), default="both", help="of the calls (both)")
    add("--budget-ms", type=float, default=75.0, metavar="MS", help="p95 of the worst call (75)")
    add("--exact-fps", type=float, default=8.0, help="least pictures per second in exact (8)")
    add("--smooth-fps", type=float, default=27.0, help="least pictures per second in smooth (27)")
    add("--begin", type=int, default=1, metavar="N", help="calls of the first step (1)")
    add("--up-to", type=int, default=12, metavar="N", help="calls of the last step (12)")
    add("--at-least", type=int, default=0, metavar="N", help="exit 1 when a mode holds fewer")
    _add_calls(parser)
    add("--seconds", type=float, default=10.0, help="measured time of each step (10)")
    add("--warmup", type=float, default=3.0, help="seconds before that, not measured (3)")
    _add_output(parser)


def _add_soak(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Calls stay while others join and leave; tells how memory, threads, open files, tasks and "
        "delay grow, with confidence, and what is left in the end. Exits with 1 when the server "
        "did not stay as it was."
    )
    parser.set_defaults(command=_soak)
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, help="of the run (30)")
    add("--settle", type=float, metavar="MINUTES", help="left out of the slopes (5, or a sixth)")
    add("--every", type=float, default=5.0, metavar="SECONDS", help="between two joins (5)")
    add("--clients", type=int, default=1, metavar="N", help="calls that stay and are measured (1)")
    add("--rss-limit", type=float, default=1.0, metavar="MIB", help="growth allowed per hour (1)")
    add("--mode", choices=("exact", "smooth"), default="exact", help="of the calls (exact)")
    _add_calls(parser)
    _add_output(parser)


def _add_calls(parser: argparse.ArgumentParser) -> None:
    """What the calls of a started server are like."""
    add = parser.add_argument
    add("--fps", type=float, default=30.0, help="pictures per second each client sends (30)")
    add("--size", type=_size, default=(640, 480), metavar="WxH", help="picture size (640x480)")
    add("--codec", choices=("H264", "VP8"), default="H264", help="of both directions (H264)")
    add("--clip", type=Path, metavar="FILE", help="a video to send; else the server's photographs")
    add("--model", metavar="NAME", help="of the started server; else the server's own default")
    add("--no-detector", action="store_true", help="the started server passes video through")
    add(
        "--server-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument of the started server; repeatable, as --server-arg=--threads=1",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--json", action="store_true", help="the record as the last line of standard output")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where the record is written")


def _add_stages(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs the stages of a frame's way one after another on one thread."
    parser.set_defaults(command=_stages)
    add = parser.add_argument
    add("--size", type=_size, default=(640, 480), metavar="WxH", help="picture size (640x480)")
    add("--codec", choices=("H264", "VP8"), default="H264", help="of both directions (H264)")
    add("--clip", type=Path, metavar="FILE", help="a video; else the server's photographs")
    add("--model", metavar="FILE", help="an ONNX file; without one there is no inference")
    add("--threads", type=int, default=0, help="of the detector; 0 lets it choose (0)")
    add("--frames", type=int, default=200, help="measured frames (200)")
    add("--json", action="store_true", help="the record as the last line of standard output")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="where the record is written")


def _add_echo(parser: argparse.ArgumentParser) -> None:
    parser.description = "Echoes calls on 127.0.0.1 until it is told to end."
    parser.set_defaults(command=_echo)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--stock", action="store_true", help="plain aiortc, nothing changed")


def _glass(options: argparse.Namespace) -> int:
    from bench.glass import GlassSettings, measure
    from bench.record import plain
    from bench.summary import describe, summarise

    settings = GlassSettings(
        clients=options.clients,
        fps=options.fps,
        size_wh=options.size,
        codec=options.codec,
        mode=options.mode,
        clip=options.clip,
        seconds=options.seconds,
        warmup_s=options.warmup,
        runs=options.runs,
        model=options.model,
        detector=not options.no_detector,
        url=options.url,
        against=options.against,
        server_args=tuple(options.server_arg),
        listens=not options.no_channel,
        budget_ms=options.budget_ms,
    )
    make_record = _record_begun("glass")
    reports = _run(measure(settings, _show_progress))
    summary = summarise(reports)
    record = make_record(settings.to_record(), summary, plain(reports))
    width, height = settings.size_wh
    name = f"{settings.against}-{settings.clients}x{width}x{height}-{settings.codec}"
    path = record.write(options.out, name.lower())
    print(describe(summary, record.settings))
    print(f"record: {path.name}")
    over = _over_budget(summary["worst_client_ms"]["p95"], settings.budget_ms)
    if options.json:
        print(record.to_json())
    return OVER_BUDGET if over else OK


def _browser(options: argparse.Namespace) -> int:
    from bench.browser import measure
    from bench.browsers.settings import BROWSERS, BrowserSettings, PageSettings
    from bench.browsers.summary import describe, summarise, worst_p95_ms
    from bench.record import plain

    settings = BrowserSettings(
        browsers=BROWSERS if options.browser == "both" else (options.browser,),
        fps=options.fps,
        size_wh=options.size,
        codec=options.codec,
        mode=options.mode,
        clip=options.clip,
        seconds=options.seconds,
        warmup_s=options.warmup,
        runs=options.runs,
        model=options.model,
        detector=not options.no_detector,
        url=options.url,
        server_args=tuple(options.server_arg),
        through_page=options.page,
        budget_ms=options.budget_ms,
        page=PageSettings(camera=options.camera, jitter_target_ms=options.jitter_target_ms),
    )
    make_record = _record_begun("browser")
    reports = _run(measure(settings, _show_progress))
    summary = summarise(reports)
    record = make_record(settings.to_record(), summary, plain(reports))
    width, height = settings.size_wh
    codec = "page" if settings.through_page else settings.codec
    path = record.write(options.out, f"{options.browser}-{width}x{height}-{codec}".lower())
    print(describe(summary, record.settings))
    print(f"record: {path.name}")
    over = _over_budget(worst_p95_ms(summary), settings.budget_ms)
    if options.json:
        print(record.to_json())
    return OVER_BUDGET if over else OK


def _sessions(options: argparse.Namespace) -> int:
    from bench.glass import GlassSettings
    from bench.record import plain
    from bench.sessions import MODES, SessionsSettings, describe, search, summary_of

    settings = SessionsSettings(
        glass=GlassSettings(
            **_calls(options), seconds=options.seconds, warmup_s=options.warmup, listens=False
        ),
        modes=MODES if options.mode == "both" else (options.mode,),
        budget_ms=options.budget_ms,
        least_fps={"exact": options.exact_fps, "smooth": options.smooth_fps},
        begin=options.begin,
        up_to=options.up_to,
    )
    make_record = _record_begun("sessions")
    reports = _run(search(settings, _show_progress))
    record = make_record(settings.to_record(), summary_of(reports), plain(reports))
    path = record.write(options.out, f"{options.mode}-{settings.glass.codec}".lower())
    print(describe(reports, settings))
    print(f"record: {path.name}")
    if options.json:
        print(record.to_json())
    fewest = min(report.sessions for report in reports)
    return OVER_BUDGET if fewest < options.at_least else OK


def _soak(options: argparse.Namespace) -> int:
    from bench.glass import GlassSettings
    from bench.record import plain
    from bench.soak import SoakSettings, soak
    from bench.soak_report import describe, summary_of

    settle = min(5.0, options.minutes / 6) if options.settle is None else options.settle
    settings = SoakSettings(
        glass=GlassSettings(**_calls(options), clients=options.clients, mode=options.mode),
        minutes=options.minutes,
        settle_minutes=settle,
        every_s=options.every,
        rss_limit_mib_per_hour=options.rss_limit,
    )
    make_record = _record_begun("soak")
    report = _run(soak(settings, _show_progress))
    record = make_record(settings.to_record(), plain(summary_of(report)), [plain(report)])
    path = record.write(options.out, f"{settings.minutes:g}min-{settings.glass.mode}")
    print(describe(report, record.settings))
    print(f"record: {path.name}")
    if options.json:
        print(record.to_json())
    return OVER_BUDGET if report.faults else OK


def _calls(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "fps": options.fps,
        "size_wh": options.size,
        "codec": options.codec,
        "clip": options.clip,
        "model": options.model,
        "detector": not options.no_detector,
        "server_args": tuple(options.server_arg),
    }


def _over_budget(p95_ms: float | None, budget_ms: float | None) -> bool:
    """Says the verdict where there is a budget."""
    if budget_ms is None:
        return False
    over = p95_ms is None or p95_ms > budget_ms
    print(f"p95 {'passes' if over else 'is within'} the budget of {budget_ms:g} ms")
    return over


def _stages(options: argparse.Namespace) -> int:
    from bench.record import plain
    from bench.stages import StageSettings, describe, measure

    settings = StageSettings(
        size_wh=options.size,
        codec=options.codec,
        clip=options.clip,
        model=options.model,
        threads=options.threads,
        frames=options.frames,
    )
    make_record = _record_begun("stages")
    report = measure(settings)
    record = make_record(settings.to_record(), plain(report), [])
    width, height = settings.size_wh
    path = record.write(options.out, f"{width}x{height}-{settings.codec}".lower())
    print(describe(report, settings.to_record()))
    print(f"record: {path.name}")
    if options.json:
        print(record.to_json())
    return OK


def _record_begun(
    bench: str,
) -> Callable[[dict[str, Any], dict[str, Any], list[Any]], "Record"]:
    """Notes when the measurement began and what else ran; gives what makes its record."""
    from bench.environment import commit, load_before, machine, versions
    from bench.record import Record, utc_now

    measured_utc, load = utc_now(), load_before()

    def make(settings: dict[str, Any], summary: dict[str, Any], runs: list[Any]) -> Record:
        return Record(
            bench=bench,
            measured_utc=measured_utc,
            code=commit(),
            versions=versions(),
            machine={**machine(), "load_before": load},
            settings=settings,
            summary=summary,
            runs=runs,
        )

    return make


def _echo(options: argparse.Namespace) -> int:
    from bench.echo import serve

    async def until_told() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await serve(options.port, options.stock, stop)

    _run(until_told())
    return OK


def _run(main_coroutine: Coroutine[Any, Any, Result]) -> Result:
    """On uvloop where there is one: its transports take a third of the time per datagram."""
    # As the server does: with Python's 5 ms the decoder thread waits for the interpreter while
    # the loop reads what came after the picture.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main_coroutine)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main_coroutine)


def _show_progress(text: str) -> None:
    """One line that is written over on a terminal; in a log, only what is new."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif "to go" not in text:
        print(text, file=sys.stderr, flush=True)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    try:
        return int(width), int(height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 640x480") from None


if __name__ == "__main__":
    sys.exit(main())
