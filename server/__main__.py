"""`python -m server`: serve; `python -m server doctor`: say what would run here."""

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Sequence

from aiohttp import web

from server import __version__
from server.app import make_app, make_detector
from server.doctor import report_lines, run_doctor
from server.errors import SightlineError
from server.inference import Detector
from server.settings import Settings, add_arguments, load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Detections drawn on live video, over WebRTC.",
        epilog="Every flag is also an environment variable (--port is SIGHTLINE_PORT) and a key "
        "of the YAML file; flags are strongest, then variables, then the file.",
    )
    parser.add_argument("command", nargs="?", choices=("serve", "doctor"), default="serve")
    parser.add_argument("--version", action="version", version=f"sightline {__version__}")
    parser.add_argument("--json", action="store_true", help="doctor: one JSON object at the end")
    add_arguments(parser)
    parsed = parser.parse_args(arguments)
    try:
        settings = load_settings(parsed)
        _set_up_logging(settings.server.log_level)
        if parsed.command == "doctor":
            return run_doctor(settings, as_json=parsed.json)
        return _serve(settings)
    except SightlineError as error:
        print(f"sightline: {error}", file=sys.stderr)
        return 2


def _serve(settings: Settings) -> int:
    # Without this a thread may hold the interpreter for 5 ms while a packet waits.
    sys.setswitchinterval(settings.server.switch_interval_ms / 1000)
    detector = make_detector(settings)
    # What start-up made stays; the collector need not walk it again while frames pass.
    gc.collect()
    gc.freeze()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(settings, detector))


async def _run(settings: Settings, detector: Detector | None) -> int:
    stop = _stop_on_signal()
    app = make_app(settings, detector)
    runner = web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=settings.server.shutdown_timeout_s,
        keepalive_timeout=15,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.server.host, settings.server.port)
        await site.start()
    except OSError as error:
        await runner.cleanup()
        print(
            f"sightline: port: cannot listen on {settings.server.host}:{settings.server.port}: "
            f"{error.strerror}",
            file=sys.stderr,
        )
        return 2
    port = runner.addresses[0][1]
    for line in report_lines(settings, detector.reports() if detector else (), port):
        print(line, flush=True)
    await stop.wait()
    print("Stopping", flush=True)
    await runner.cleanup()
    return 0


def _stop_on_signal() -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop_once() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        loop.add_signal_handler(number, stop_once)
    return stop


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _set_up_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    for noisy in ("aioice", "aiortc"):
        logging.getLogger(noisy).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
