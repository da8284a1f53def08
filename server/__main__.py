"""`python -m server`: serve; `... doctor`: say what would run here; `... token`: issue one."""

import argparse
import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Sequence

from aiohttp import web

from server import __version__
from server.access.tls import make_tls
from server.access.token_command import run_token
from server.app import SIGNALING, make_app, with_chosen_model, with_demo_decided
from server.doctor import report_lines, run_doctor
from server.edge.gate import make_runner
from server.errors import SightlineError
from server.inference import Detector
from server.logs import set_up_logging
from server.memory import limit_arenas
from server.rtc.addresses import media_addresses
from server.settings import Settings, add_arguments, load_settings
from server.workers import make_detector


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "token":
        return run_token(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Detections drawn on live video, over WebRTC.",
        epilog="Every flag is also an environment variable (--port is SIGHTLINE_PORT) and a key "
        "of the YAML file; flags are strongest, then variables, then the file. "
        "`python -m server token --help` tells how to issue tokens.",
    )
    parser.add_argument("command", nargs="?", choices=("serve", "doctor"), default="serve")
    parser.add_argument("--version", action="version", version=f"sightline {__version__}")
    parser.add_argument("--json", action="store_true", help="doctor: one JSON object at the end")
    add_arguments(parser)
    parsed = parser.parse_args(arguments)
    try:
        settings = with_demo_decided(with_chosen_model(load_settings(parsed)))
        set_up_logging(settings.server.log_level, settings.server.log_format)
        if parsed.command == "doctor":
            return run_doctor(settings, as_json=parsed.json)
        return _serve(settings)
    except SightlineError as error:
        print(f"sightline: {error}", file=sys.stderr)
        return 2


def _serve(settings: Settings) -> int:
    limit_arenas()
    # Without this a thread may hold the interpreter for 5 ms while a packet waits.
    sys.setswitchinterval(settings.server.switch_interval_ms / 1000)
    detector = make_detector(settings)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(settings, detector))


async def _run(settings: Settings, detector: Detector | None) -> int:
    stop = _stop_on_signal()
    tls = make_tls(settings, media_addresses())
    app = make_app(settings, detector)
    runner = make_runner(app, settings)
    await runner.setup()
    context = tls.context if tls is not None else None
    for host, listened_port in settings.server.addresses():
        try:
            await web.TCPSite(runner, host, listened_port, ssl_context=context).start()
        except OSError as error:
            await runner.cleanup()
            print(
                f"sightline: port: cannot listen on {host}:{listened_port}: {error.strerror}",
                file=sys.stderr,
            )
            return 2
    # What start-up made stays; the collector need not walk it again while frames pass.
    gc.collect()
    gc.freeze()
    port = runner.addresses[0][1]
    for line in report_lines(settings, detector.reports() if detector else (), port):
        print(line, flush=True)
    if tls is not None:
        kind = "self-signed" if tls.self_signed else "from file"
        print(f"  tls        {kind}, SHA-256 {tls.fingerprint}", flush=True)
    if await stop == signal.SIGTERM:
        print("Draining", flush=True)
        await app[SIGNALING].registry.drain(settings.server.drain_s)
    print("Stopping", flush=True)
    await runner.cleanup()
    return 0


def _stop_on_signal() -> asyncio.Future[signal.Signals]:
    """The first SIGINT or SIGTERM; a second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[signal.Signals] = loop.create_future()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop_once(first: signal.Signals) -> None:
        stop.set_result(first)
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        loop.add_signal_handler(number, stop_once, number)
    return stop


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
