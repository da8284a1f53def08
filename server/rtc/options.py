"""Switches and limits of the `rtc` package; the one value its parts are built from.

Every change to aiortc's behaviour has a switch here, on by default. The reason for each and
its measured effect stand in `server/rtc/README.md` under the same name.
"""

import ipaddress
from dataclasses import dataclass

from server.errors import SettingsError


@dataclass(frozen=True, slots=True)
class IceServer:
    """One STUN or TURN server; several URLs share the credentials."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = None


@dataclass(frozen=True, slots=True)
class RtcOptions:
    """What a `PeerConnection` is built from. Checked when made; raises `SettingsError`."""

    marker_assembly: bool = True
    """Release a frame at the RTP marker bit, not at the next frame's first packet."""
    timed_nack: bool = True
    """Ask again for a lost packet until the frame's deadline; stock asks once."""
    bounded_decode: bool = True
    """Decode from a bounded queue that drops to the next key frame; stop never joins."""
    datagram_guard: bool = True
    """A malformed or foreign datagram costs that datagram, not the session."""
    socket_filter: bool = True
    """The system drops such datagrams before this process reads them (Linux, with the guard)."""
    fast_consent: bool = True
    """Notice a vanished peer in about 8 s; stock takes 27 to 39 s."""
    own_encoders: bool = True
    """Encode with our H264 and VP8 encoders instead of aiortc's."""
    header_extensions: bool = True
    """Say when each picture was taken, and ask for no playout delay, where the peer offers it."""

    video_codecs: tuple[str, ...] = ("H264", "VP8")
    """Preference order, and the allowed set."""
    h264_encoder: str = "auto"
    """auto | libx264 | h264_nvenc"""
    bitrate_min_bps: int = 100_000
    bitrate_max_bps: int = 6_000_000

    ice_servers: tuple[IceServer, ...] = ()
    """Empty: nothing outside is asked."""
    port_range: tuple[int, int] | None = None
    """First and last UDP port for media, both used; None leaves it to the system."""
    announced: tuple[str, ...] = ()
    """Addresses offered beside those of this machine, at the same ports: a container's host."""
    gather_timeout_s: float = 1.5
    """Gathering ends here with what it has, whatever STUN and TURN do."""
    loopback_candidates: bool = False
    """Offer 127.0.0.1 beside other addresses; it is offered anyway when it is the only one."""

    frame_deadline_ms: float = 200
    """How long a missing packet may hold up its frame, and how long it is asked for."""
    max_packets_buffered: int = 2048
    """Packets one assembler may hold; beyond it the oldest frame is given up."""
    decode_queue_frames: int = 16
    """Frames waiting for one decoder; beyond it everything up to the next key frame is dropped.
    More than a hole holds up within its deadline at 60 fps, which then arrive all at once."""
    max_picture_pixels: int = 4096 * 2304
    """Larger pictures are refused."""
    datagram_queue_packets: int = 4096
    """Datagrams waiting for one peer's pump; beyond it the newest is dropped."""
    freeze_limit_ms: float = 2000
    """A sender that answers no key frame request is shown with its damage after this long."""
    pli_interval_ms: float = 500
    """Least time between two picture loss indications to one source."""

    def __post_init__(self) -> None:
        known_codecs = ("H264", "VP8")
        if not self.video_codecs or any(c not in known_codecs for c in self.video_codecs):
            raise SettingsError(
                f"video_codecs: {','.join(self.video_codecs) or 'empty'} is not among H264, VP8"
            )
        known_encoders = ("auto", "libx264", "h264_nvenc")
        if self.h264_encoder not in known_encoders:
            raise SettingsError(
                f"h264_encoder: {self.h264_encoder} is not one of {', '.join(known_encoders)}"
            )
        if not 10_000 <= self.bitrate_min_bps <= self.bitrate_max_bps <= 100_000_000:
            raise SettingsError(
                f"bitrate_min_bps, bitrate_max_bps: {self.bitrate_min_bps}, "
                f"{self.bitrate_max_bps} do not rise within 10000..100000000"
            )
        for address in self.announced:
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise SettingsError(f"announce: {address!r} is not an IP address") from None
        if self.port_range is not None:
            first, last = self.port_range
            if not 1024 <= first <= last <= 65535:
                raise SettingsError(f"port_range: {first}-{last} does not rise within 1024..65535")
        for key, low, high in (
            ("gather_timeout_s", 0.1, 10.0),
            ("frame_deadline_ms", 20, 2000),
            ("max_packets_buffered", 64, 16384),
            ("decode_queue_frames", 2, 120),
            ("max_picture_pixels", 64 * 64, 8192 * 8192),
            ("datagram_queue_packets", 64, 65536),
            ("freeze_limit_ms", 100, 60_000),
            ("pli_interval_ms", 50, 10_000),
        ):
            value = getattr(self, key)
            if not low <= value <= high:
                raise SettingsError(f"{key}: {value} is outside {low}..{high}")
