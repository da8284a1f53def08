"""`python -m server doctor`: what would run here, found out by running it."""

import errno
import ipaddress
import json
import platform
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from server import __version__
from server.access.auth import is_required
from server.access.tls import is_on
from server.app import clips_folder, make_app
from server.detections import EngineReport
from server.detector.load import load_detector
from server.detector.trial import try_apart
from server.errors import SettingsError, SightlineError
from server.rtc.addresses import media_addresses
from server.rtc.encoders.probe import choose_h264
from server.settings import SECRET_LENGTH_AT_LEAST, Settings
from server.state_files import state_folder, unwritable

PACKAGES = ("aiortc", "aioice", "av", "aiohttp", "numpy", "opencv-python-headless", "uvloop")
RUNTIMES = ("onnxruntime-openvino", "onnxruntime-gpu", "onnxruntime")


def report_lines(
    settings: Settings, engines: Sequence[EngineReport], port: int | None = None
) -> list[str]:
    """What really runs, one fact a line; `port` is the one listened on."""
    h264 = choose_h264(settings.rtc.h264_encoder)
    codecs = [
        f"H264 ({h264.name})" if name == "H264" else name for name in settings.rtc.video_codecs
    ]
    ports = settings.rtc.port_range or "any free port"
    addresses = ", ".join(media_addresses()) or "none found"
    lines = [f"Sightline {__version__}  {' '.join(_urls(settings, port))}"]
    if not engines:
        lines.append("  detector   none: passing video through (name one with --model)")
    for engine in engines:
        width, height = engine.input_wh
        lines.append(
            f"  detector   {engine.model} ({engine.family}, {width}x{height}) on "
            f"{engine.provider}, {engine.precision}, {engine.threads} threads"
        )
        if engine.fallback:
            lines.append(f"             {engine.fallback}")
    lines.append(f"  video      {', '.join(codecs)}")
    lines.append(f"  media      UDP, {ports}, on {addresses}")
    lines.append(
        f"  outside    {', '.join(settings.rtc.ice_servers) or 'no STUN or TURN is asked'}"
    )
    lines.append(f"  limits     {settings.session.max_sessions} calls")
    lines.append(f"  access     {_access(settings)}")
    lines.append(f"  kept       {_kept(settings)}")
    return lines


def _kept(settings: Settings) -> str:
    """Where zones, events and clips go, and why they cannot where that is so."""
    folder = state_folder(settings.auth)
    text = f"zones and events in {folder}"
    if settings.store.store != "auto":
        events = "nowhere" if settings.store.store == "off" else "where store says"
        text = f"zones in {folder}, events {events}"
    told = [(text, unwritable(folder))]
    if settings.clips.clips:
        clips = clips_folder(settings)
        told.append((f"clips in {clips}", unwritable(clips)))
    else:
        told.append(("no clips", ""))
    return ", ".join(f"{what} (NOT NOW: {why})" if why else what for what, why in told)


def run_doctor(settings: Settings, *, as_json: bool) -> int:
    """Load everything as the server would, print it, and tell by the exit code if it would run."""
    began = time.perf_counter()
    problem = ""
    engines: tuple[EngineReport, ...] = ()
    try:
        if settings.detector.model:
            try_apart(settings.detector)
            detector = load_detector(settings.detector)
            engines = detector.reports()
            detector.close()
    except SightlineError as error:
        problem = str(error)
    load_s = time.perf_counter() - began
    for line in report_lines(settings, engines):
        print(line)
    no_port = port_problem(settings)
    wrong = settings_problem(settings)
    packages = _versions()
    print(f"  load       {load_s:.1f} s for the detector, parity {_parity(settings, engines)}")
    print(f"  python     {platform.python_version()} on {platform.platform()}")
    print(f"  packages   {', '.join(f'{name} {version}' for name, version in packages.items())}")
    problems = [text for text in (problem, no_port, wrong) if text]
    for text in problems:
        print(f"  PROBLEM    {text}", file=sys.stderr)
    if as_json:
        print(json.dumps(_json(settings, engines, packages, problems)))
    return 1 if problems else 0


def settings_problem(settings: Settings) -> str:
    """Why the application could not be put together with these settings; empty where it can. A
    secret that is still to be made is not made: it would belong to whoever asks the doctor."""
    auth = settings.auth
    if not auth.token_secret:
        settings = replace(settings, auth=replace(auth, token_secret="." * SECRET_LENGTH_AT_LEAST))
    try:
        make_app(settings, None)
    except SettingsError as error:
        return str(error)
    return ""


def _parity(settings: Settings, engines: Sequence[EngineReport]) -> str:
    if not engines:
        return "not checked: no detector"
    return "checked" if settings.detector.parity else "not checked: parity is off"


def _access(settings: Settings) -> str:
    if not is_required(settings.auth, *(host for host, _ in settings.server.addresses())):
        return "open: whoever reaches the port may do everything"
    if is_on(settings.tls):
        return "a key or token is needed (python -m server token --help)"
    return "a key or token is needed; without TLS in front it can be read on the way"


def _urls(settings: Settings, port: int | None) -> list[str]:
    scheme = "https" if is_on(settings.tls) else "http"
    host, shown_port = settings.server.host, settings.server.port if port is None else port
    listened = ((host, shown_port), *settings.server.addresses()[1:])
    return [
        f"{scheme}://{_bracketed(address)}:{port}/"
        for host, port in listened
        for address in _reached_by(host)
    ]


def _reached_by(host: str) -> list[str]:
    """The addresses that a host of ours stands for."""
    if host not in ("0.0.0.0", "::"):
        return [host]
    return [
        address
        for address in ("127.0.0.1", *media_addresses())
        if not ipaddress.ip_address(address.partition("%")[0]).is_link_local
    ]


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def port_problem(settings: Settings) -> str:
    """Why we could not listen where the settings want it; empty where we can."""
    addresses = settings.server.addresses()
    for index, (host, port) in enumerate(addresses):
        shown = f"{_bracketed(host)}:{port}"
        if port and (host, port) in addresses[:index]:
            return f"listen: {shown} is named twice"
        try:
            _bind(host, port)
        except OSError as error:
            is_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
            name = "listen" if index else "port" if is_port else "host"
            return f"{name}: cannot listen on {shown}: {error.strerror}"
    return ""


def _bind(host: str, port: int) -> None:
    """Take all addresses of that name for a moment."""
    for family, kind, _, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)


def _versions() -> dict[str, str]:
    found = {}
    for name in (*PACKAGES, *RUNTIMES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _json(
    settings: Settings,
    engines: Sequence[EngineReport],
    packages: dict[str, str],
    problems: list[str],
) -> dict[str, Any]:
    h264 = choose_h264(settings.rtc.h264_encoder)
    return {
        "version": __version__,
        "engines": [
            {
                "model": engine.model,
                "family": engine.family,
                "provider": engine.provider,
                "precision": engine.precision,
                "input_wh": list(engine.input_wh),
                "threads": engine.threads,
                "fallback": engine.fallback,
            }
            for engine in engines
        ],
        "codecs": list(settings.rtc.video_codecs),
        "h264_encoder": h264.name,
        "h264_note": h264.note,
        "media_addresses": media_addresses(),
        "port_range": settings.rtc.port_range,
        "packages": packages,
        "problems": problems,
    }
