"""`python -m server`: serve; `... doctor`: say what would run here; `... token`: issue one."""

import argparse
import asyncio
import difflib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

try:
    from aiohttp import web
except ModuleNotFoundError as error:
    raise SystemExit(
        f"sightline: the package {error.name} is not installed for this Python: `make serve` "
        "installs what is needed into .venv, and .venv/bin/python runs it"
    ) from None

# OpenCV reads it while it is imported: its threads shall not wait busily for the next picture,
# which took half as much again as scaling one.
os.environ.setdefault("OPENCV_THREAD_POOL_ACTIVE_WAIT_WORKER", "0")

from server import __version__
from server.access.tls import Tls, make_tls
from server.access.token_command import run_token
from server.app import INFERENCE, SIGNALING, make_app, with_chosen_model, with_demo_decided
from server.doctor import port_problem, report_lines, run_doctor
from server.edge.gate import make_runner
from server.errors import SettingsError, SightlineError
from server.inference import Detector
from server.logs import set_up_logging
from server.memory import set_up_allocator
from server.rtc.addresses import media_addresses
from server.settings import Settings
from server.settings_loading import KEYS, add_arguments, load_settings, unknown_variables
from server.workers import make_detector

logger = logging.getLogger("server")

COMMANDS = ("serve", "doctor", "token")
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] == "token":
        return run_token(arguments[1:])
    parsed = _parse(arguments)
    try:
        settings = with_demo_decided(with_chosen_model(load_settings(parsed)))
        set_up_logging(settings.server.log_level, settings.server.log_format)
        for name in unknown_variables():
            logger.warning("%s: no such setting; it is not used", name)
        if parsed.command == "doctor":
            return run_doctor(settings, as_json=parsed.json)
        return _serve(settings)
    except SightlineError as error:
        print(f"sightline: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        usage=f"python -m server [{'|'.join(COMMANDS)}] [--SETTING VALUE ...] [--help]",
        description="Detections drawn on live video, over WebRTC.",
        epilog="Every flag is also an environment variable (--port is SIGHTLINE_PORT) and a key "
        "of the YAML file; flags are strongest, then variables, then the file. "
        "`python -m server token --help` tells how to issue tokens.",
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", default="serve", help="serve unless another is named")
    parser.add_argument("--version", action="version", version=f"sightline {__version__}")
    parser.add_argument("--json", action="store_true", help="doctor: one JSON object at the end")
    add_arguments(parser)
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(name, [row.flag for row in KEYS], 1, cutoff=0.7)
        told = f"{near[0]} may be meant" if near else "--help lists them"
        parser.error(f"{name}: no such setting; {told}")
    if parsed.command not in COMMANDS:
        parser.error(f"{parsed.command!r} is not one of {', '.join(COMMANDS)}")
    if parsed.command == "token":
        parser.error("token comes first: python -m server token --help")
    return parsed


def _serve(settings: Settings) -> int:
    # Whatever is wrong with the settings is told before the model is loaded, which takes a while.
    if problem := port_problem(settings):
        raise SettingsError(problem)
    tls = make_tls(settings, media_addresses())
    set_up_allocator()
    # Without this a thread may hold the interpreter for 5 ms while a packet waits.
    sys.setswitchinterval(settings.server.switch_interval_ms / 1000)
    app = make_app(settings, None)
    detector = make_detector(settings)
    if detector is not None:
        app[INFERENCE].begin_with(detector)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(settings, app, detector, tls))


async def _run(
    settings: Settings, app: web.Application, detector: Detector | None, tls: Tls | None
) -> int:
    stop = _stop_on_signal()
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
    # It waits for a quarter more than it found last, which from now on is next to nothing.
    gc.collect()
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


def _leave(status: int) -> None:
    """End the process. A thread that is still inside a native call, such as compiling a model,
    would otherwise be torn out of it by the interpreter's end, and C++ then aborts."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if any(thread.daemon for thread in threading.enumerate()):
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    _leave(main())
