"""What may be opened, and how: the rules that an address must pass before FFmpeg sees it.

FFmpeg opens anything that a text can name: other protocols behind a prefix, files behind a play
list, hosts behind a redirect. So a text is taken apart here, every scheme has its own closed list
of protocols and formats, and what is shown anywhere is the scheme and the host alone: user names,
passwords, paths and parameters may all be secrets.
"""

import ipaddress
import re
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult

from server.errors import ForbiddenError, UnprocessableError
from server.settings import SourceSettings
from server.urls import split_url

LENGTH_AT_MOST = 2000
SCHEME = re.compile(r"([a-z][a-z0-9+]*):")
DEVICE = re.compile(r"(?:/dev/)?(video[0-9]{1,3})")
# 8K.
MAX_PIXELS = 7680 * 4320
# What some clouds tell their machines at, beside the link-local 169.254.169.254: keys among it.
METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200")))
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str], Iterable[str]]

# Of files and of what comes over HTTP: what holds pictures, and no play list of other files.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,flv,mpeg,ogg"
# RTSP tells its codecs itself: nothing needs to be watched before the first picture is shown.
AT_ONCE = {"analyzeduration": "1", "probesize": "32", "fpsprobesize": "0"}
# Where the first bytes say what it is; half a second finds the video of any live stream. What was
# read for it is shown all the same (no `nobuffer`): the key frame is in it, and catching up with
# half a second takes no time.
SOON = {"analyzeduration": "500000", "probesize": "500000"}
WEB = "http,https,tls,tcp,crypto"
# Of a play list that grows, the newest piece: each costs its length in delay.
HTTP = {**SOON, "live_start_index": "-1"}
RTSP = {
    **AT_ONCE,
    # A sound track would bring RTCP's clock in, and with it a leap of the picture's time.
    "allowed_media_types": "video",
    # A packet that is lost is waited for so long (in microseconds), and not for 0.7 s.
    "max_delay": "60000",
    "reorder_queue_size": "64",
    "buffer_size": "1048576",
}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How FFmpeg opens what begins so. `protocols` and `formats` are all it may use for it, in
    what it opens behind it too."""

    protocols: str
    formats: str
    options: Mapping[str, str] = field(default_factory=dict)
    ffmpeg_scheme: str = ""


NETWORK: Mapping[str, Scheme] = {
    "rtsp": Scheme("rtsp,rtp,tcp,udp", "rtsp,sdp,rtp", {**RTSP, "rtsp_transport": "tcp"}),
    "rtsp+udp": Scheme(
        "rtsp,rtp,tcp,udp", "rtsp,sdp,rtp", {**RTSP, "rtsp_transport": "udp"}, "rtsp"
    ),
    "rtsps": Scheme("rtsps,rtsp,rtp,tcp,udp,tls", "rtsp,sdp,rtp", RTSP),
    "rtmp": Scheme("rtmp,tcp", "flv", {**SOON, "rtmp_live": "live", "rtmp_buffer": "100"}),
    "rtmps": Scheme("rtmps,rtmp,tcp,tls", "flv", {**SOON, "rtmp_live": "live"}),
    "srt": Scheme("srt,udp", "mpegts", SOON),
    "http": Scheme(WEB, f"hls,mpjpeg,mjpeg,{CONTAINERS}", HTTP),
    "https": Scheme(WEB, f"hls,mpjpeg,mjpeg,{CONTAINERS}", HTTP),
}
FILE = Scheme("file", CONTAINERS)
DEVICES = Scheme("file", "v4l2,video4linux2,avfoundation")


@dataclass(frozen=True, slots=True)
class Address:
    """What a source is opened by. `url` may hold secrets and goes to FFmpeg only; `shown` is what
    everybody else sees."""

    kind: Literal["network", "file", "device", "demo"]
    scheme: str
    url: str = field(repr=False)
    shown: str
    host: str = field(default="", repr=False)
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse_address(text: str, settings: SourceSettings) -> Address:
    """The address that a text means; refuses what may not be opened, without repeating it."""
    if len(text) > LENGTH_AT_MOST or not text.isascii() or not text.isprintable() or " " in text:
        raise UnprocessableError(
            f"source: not an address of at most {LENGTH_AT_MOST} visible ASCII characters"
        )
    if text == "demo":
        return Address("demo", "demo", "", "demo")
    found = SCHEME.match(text)
    scheme = found[1] if found else ""
    known = (*NETWORK, "file", "device")
    if scheme not in known or scheme not in settings.source_schemes:
        allowed = ", ".join(name for name in known if name in settings.source_schemes)
        raise UnprocessableError(f"source: its scheme is not one of {allowed} (source_schemes)")
    rest = text[len(scheme) + 1 :]
    if scheme == "file":
        return _file(rest, settings)
    if scheme == "device":
        return _device(rest)
    return _network(scheme, text)


def _network(scheme: str, text: str) -> Address:
    parts = split_url(text)
    if parts is None:
        raise UnprocessableError("source: not a URL with a host and a port")
    host, port = parts.hostname or "", parts.port
    if not text.startswith(f"{scheme}://") or not host or parts.fragment:
        raise UnprocessableError("source: not a URL as scheme://host:port/path")
    rule = NETWORK[scheme]
    url = parts._replace(scheme=rule.ffmpeg_scheme or scheme).geturl()
    shown_host = f"[{host}]" if ":" in host else host
    return Address(
        "network",
        scheme,
        url,
        f"{scheme}://{shown_host}{f':{port}' if port is not None else ''}{_more(parts)}",
        host=host,
        options=_closed(rule),
    )


def _more(parts: SplitResult) -> str:
    return "/…" if parts.path.strip("/") or parts.query else ""


def _file(rest: str, settings: SourceSettings) -> Address:
    """A file below the folder, whatever links and dots lead elsewhere."""
    if not settings.source_folder:
        raise UnprocessableError("source: files are read below source_folder, which is not set")
    folder = Path(settings.source_folder).resolve()
    given = rest.removeprefix("//")
    try:
        path = (folder / given).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        path = folder
    # The same words for what is elsewhere and for what is not there: nobody learns what exists.
    if not path.is_relative_to(folder) or not path.is_file():
        raise UnprocessableError("source: no such file below source_folder")
    return Address("file", "file", f"file:{path}", f"file:{path.name}", options=_closed(FILE))


def _device(rest: str) -> Address:
    found = DEVICE.fullmatch(rest)
    if found is None:
        raise UnprocessableError("source: a device is device:/dev/video0 or another number")
    if sys.platform == "darwin":
        number = found[1].removeprefix("video")
        return Address("device", "device", number, f"device:{number}", format="avfoundation")
    path = f"/dev/{found[1]}"
    options = {**_closed(DEVICES), "fflags": "nobuffer"}
    return Address("device", "device", path, f"device:{path}", format="v4l2", options=options)


def _closed(scheme: Scheme) -> dict[str, str]:
    return {
        **scheme.options,
        "protocol_whitelist": scheme.protocols,
        "format_whitelist": scheme.formats,
        # Refused before memory is taken: a few bytes can announce a huge picture.
        "max_pixels": str(MAX_PIXELS),
    }


def look_up(host: str) -> list[str]:
    """All addresses of a host; blocks, for as long as the system's resolver wants. Raises OSError
    where the name is not known."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:
        # A label that is empty or too long: no resolver was asked.
        raise socket.gaierror(socket.EAI_NONAME, "not a name") from None
    return sorted({str(entry[4][0]) for entry in found})


def check_host(address: Address, allowed: Iterable[str], resolve: Resolve = look_up) -> None:
    """Refuse an address that a caller of the API may not make this server connect to.

    Cameras live on private networks, so those are open. Closed is what only this machine can
    reach, where services trust each other, and what a cloud tells its machines: loopback, link
    local, multicast and unspecified addresses, unless the host or its network is named. Raises
    OSError where the name is not known.
    """
    if address.kind != "network":
        return
    names = set(allowed)
    if address.host in names:
        return
    networks = [network for name in names if (network := _network_of(name)) is not None]
    for text in resolve(address.host):
        # A scope (fe80::1%eth0) says which link, not which kind.
        ip = _plain(ipaddress.ip_address(text.partition("%")[0]))
        if any(ip in network for network in networks if network.version == ip.version):
            continue
        if (
            ip.is_loopback
            or ip.is_link_local
            or ip.is_multicast
            or ip.is_unspecified
            or ip in METADATA
            or (ip.is_reserved and ip.version == 4)
        ):
            raise ForbiddenError("source: its host is one that source_hosts does not open")


def confined(address: Address, allowed: Iterable[str]) -> dict[str, str]:
    """FFmpeg's options for an address that a caller of the API gave: what it names must not lead
    on to hosts that were not looked at, by a redirect or by a play list. For a redirect of RTSP
    FFmpeg has no option (docs/sources.md)."""
    options = dict(address.options)
    if address.scheme in ("http", "https") and address.host not in set(allowed):
        options["max_redirects"] = "0"
        options["format_whitelist"] = options["format_whitelist"].removeprefix("hls,")
    return options


def _plain(ip: IpAddress) -> IpAddress:
    """An IPv4 address in IPv6's clothes is what it is inside."""
    return (ip.version == 6 and getattr(ip, "ipv4_mapped", None)) or ip


def _network_of(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def parse_sources(rows: Iterable[str]) -> dict[str, str]:
    """`name=address` of the settings, by name; raises ValueError with the number of a bad row."""
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        name, separator, text = row.partition("=")
        if not separator or not name.strip() or name.strip() in found:
            raise ValueError(f"sources: entry {number} is not another name=address")
        found[name.strip()] = text.strip()
    return found
