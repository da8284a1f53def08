"""Settings as frozen groups, defaulted here and nowhere else; `settings_loading.py` fills them.

Parts of the server receive only their own group.
"""

import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from server.errors import SettingsError

MODES = ("exact", "smooth", "data")
PROVIDERS = ("auto", "openvino", "cpu", "cuda", "tensorrt", "coreml", "directml")
PRECISIONS = ("auto", "fp16", "bf16", "fp32")
CODECS = ("H264", "VP8")
RTC_SWITCHES = (
    "marker_assembly",
    "timed_nack",
    "bounded_decode",
    "datagram_guard",
    "socket_filter",
    "fast_consent",
    "own_encoders",
    "header_extensions",
)
SOURCE_SCHEMES = (
    "rtsp",
    "rtsp+udp",
    "rtsps",
    "rtmp",
    "rtmps",
    "srt",
    "http",
    "https",
    "file",
    "device",
)
STREAM_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
STREAM_NAME_RULE = "a name has 1 to 64 of A-Z, a-z, 0-9, _ and -"
SECRET_LENGTH_AT_LEAST = 32


def key(
    default: Any,
    help_text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    secret: bool = False,
) -> Any:
    """One setting: its default, what it does, and what it may be; a secret is never printed."""
    return field(
        default=default,
        repr=not secret,
        metadata={
            "help": help_text,
            "low": low,
            "high": high,
            "choices": choices,
            "secret": secret,
        },
    )


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where we listen and what we say."""

    host: str = key("127.0.0.1", "address to listen on; 0.0.0.0 for every interface")
    port: int = key(
        8080, "TCP port for the page and the API; 0 lets the system choose", low=0, high=65535
    )
    listen: tuple[str, ...] = key(
        (), "further addresses to listen on, as HOST:PORT; --listen may be given more than once"
    )
    max_body_kib: int = key(128, "largest accepted offer or settings body", low=1, high=4096)
    shutdown_timeout_s: float = key(
        5.0, "longest orderly stop before what is left is cut off", low=0.1, high=60
    )
    drain_s: float = key(
        5.0,
        "after SIGTERM: how long those who are in may take to go elsewhere before they are ended",
        low=0,
        high=300,
    )
    log_level: str = key("info", "how much to log", choices=("debug", "info", "warning", "error"))
    log_format: str = key(
        "console", "lines for people or JSON objects, one a line", choices=("console", "json")
    )
    trace_sample: float = key(
        0.0, "share of the frames that are sent as OpenTelemetry traces (extra otel)", low=0, high=1
    )
    trace_endpoint: str = key("http://127.0.0.1:4318/v1/traces", "where traces go: OTLP over HTTP")
    switch_interval_ms: float = key(
        0.5,
        "longest a thread may hold the interpreter while another waits for it",
        low=0.05,
        high=5,
    )

    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of everything listened on, the page's own first."""
        return ((self.host, self.port), *(_address(text) for text in self.listen))


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Limits and deadlines of calls, and how a call starts out."""

    max_sessions: int = key(
        16, "calls served at the same time; one more gets 503", low=1, high=1000
    )
    connect_timeout_s: float = key(
        15.0, "a call that has not connected by then is freed", low=1, high=120
    )
    stale_after_s: float = key(
        2.0, "a peer silent for so long is reported as stale", low=0.5, high=60
    )
    silent_timeout_s: float = key(8.0, "a peer silent for so long is freed", low=1, high=600)
    close_timeout_s: float = key(2.0, "longest a call may take to close", low=0.1, high=30)
    mode: str = key(
        "exact",
        "how a call starts: boxes on their own frame, every frame at once, or beside it",
        choices=MODES,
    )
    confidence: float = key(
        0.35, "least confidence of a box that is shown when a call starts", low=0.01, high=1
    )
    fade_ms: float = key(
        300.0, "boxes older than this are no longer drawn in mode smooth", low=0, high=5000
    )


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Named streams and their viewers (docs/publish.md, docs/view.md)."""

    max_streams: int = key(32, "streams at the same time; one more gets 503", low=1, high=1000)
    max_viewers: int = key(100, "viewers of one stream; one more gets 503", low=1, high=10_000)
    max_mjpeg_viewers: int = key(
        32, "MJPEG viewers of all streams; one more gets 503", low=0, high=10_000
    )
    max_mjpeg_per_address: int = key(
        8, "MJPEG viewers of one address; one more gets 429, 0 for no limit", low=0, high=10_000
    )
    no_signal_s: float = key(
        30.0, "how long viewers keep the last picture when the source left", low=0, high=86_400
    )
    replace_source: bool = key(
        False, "a second source of a stream ends the first instead of getting 409"
    )


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Pictures that come as files and want one answer each (docs/detect.md)."""

    max_image_mib: int = key(
        16, "largest message of a WebSocket and body of a detection request", low=1, high=256
    )
    max_image_megapixels: float = key(
        50.0, "largest picture, by its header before it is decoded", low=0.01, high=500
    )
    image_memory_megapixels: float = key(
        100.0, "decoded pictures that wait for their answer, all together; more wait undecoded",
        low=0.01, high=10_000,
    )  # fmt: skip
    decode_threads: int = key(2, "threads that decode picture files", low=1, high=64)
    answer_timeout_s: float = key(
        5.0, "a picture without an answer by then gets an error", low=0.1, high=60
    )
    max_sockets: int = key(
        64, "WebSockets that send pictures at the same time; one more gets 503", low=1, high=10_000
    )
    socket_idle_s: float = key(
        60.0, "a WebSocket that sends no whole picture for so long is closed", low=0.1, high=3600
    )
    max_detect_requests: int = key(
        32, "detection requests served or waiting at the same time; one more gets 503",
        low=1, high=1000,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """Streams that the server fetches itself (docs/sources.md)."""

    sources: tuple[str, ...] = key(
        (),
        "streams to fetch from the start, as NAME=ADDRESS, such as door=rtsp://camera/1",
        secret=True,
    )
    source_schemes: tuple[str, ...] = key(
        SOURCE_SCHEMES, "what addresses of sources may begin with", choices=SOURCE_SCHEMES
    )
    source_folder: str = key("", "folder below which file: sources lie; empty opens no files")
    source_hosts: tuple[str, ...] = key(
        (),
        "loopback or link-local hosts or networks that sources added over the API may be at; "
        "those of this setting and private networks always may",
    )
    source_timeout_s: float = key(
        5.0, "longest a source may take to open, and between two pictures", low=0.5, high=120
    )
    source_retry_s: float = key(
        30.0, "longest pause before a source that left is tried again", low=0.1, high=3600
    )
    source_decoder: str = key(
        "cpu",
        "what decodes sources; auto and names of hardware fall back to the CPU",
        choices=("cpu", "auto", "cuda", "vaapi", "qsv", "videotoolbox"),
    )
    demo: str = key(
        "auto",
        "the stream demo, drawn while somebody watches; auto: when no sources are set",
        choices=("auto", "on", "off"),
    )


@dataclass(frozen=True, slots=True)
class RtcSettings:
    """Media transport."""

    video_codecs: tuple[str, ...] = key(CODECS, "codecs offered, best first", choices=CODECS)
    h264_encoder: str = key(
        "auto", "auto probes for hardware", choices=("auto", "libx264", "h264_nvenc")
    )
    bitrate_min_kbps: int = key(100, "least video bitrate", low=50, high=50_000)
    bitrate_max_kbps: int = key(6000, "most video bitrate", low=100, high=100_000)
    port_range: str = key("", "UDP ports for media as FIRST-LAST; empty lets the system choose")
    announce: tuple[str, ...] = key(
        (), "addresses offered for media beside this machine's own, such as a container's host"
    )
    ice_servers: tuple[str, ...] = key((), "STUN or TURN addresses; empty asks nobody outside")
    ice_username: str = key("", "user name for the TURN addresses")
    ice_credential: str = key("", "password for the TURN addresses", secret=True)
    gather_timeout_s: float = key(
        1.5, "longest wait for STUN and TURN before answering", low=0.1, high=10
    )
    frame_deadline_ms: float = key(
        200.0,
        "how long a hole in a frame is waited for before a key frame is asked for",
        low=20,
        high=2000,
    )
    encode_threads: int = key(2, "threads that draw and encode", low=1, high=64)
    rtc_disable: tuple[str, ...] = key(
        (),
        "changes to aiortc's behaviour to leave out (see server/rtc/README.md)",
        choices=RTC_SWITCHES,
    )

    def port_pair(self) -> tuple[int, int] | None:
        """The media ports, inclusive, or None for any."""
        if not self.port_range:
            return None
        first, _, last = self.port_range.partition("-")
        try:
            pair = int(first), int(last)
        except ValueError:
            raise SettingsError(
                f"port_range: {self.port_range!r} is not FIRST-LAST, such as 50000-50100"
            ) from None
        if not 1024 <= pair[0] <= pair[1] <= 65535:
            raise SettingsError(
                f"port_range: {self.port_range!r} is not within 1024-65535, first to last"
            )
        return pair


@dataclass(frozen=True, slots=True)
class DetectorSettings:
    """The model and what runs it."""

    model: str = key(
        "",
        "name from the registry or path of an ONNX file, several joined by +; empty takes the one "
        "that comes with Sightline, none passes video through",
    )
    labels: str = key("", "file of class names, one a line, where the model has none")
    provider: str = key("auto", "what runs the model", choices=PROVIDERS)
    precision: str = key(
        "auto", "arithmetic: auto takes the fastest the hardware has", choices=PRECISIONS
    )
    threads: int = key(0, "inference threads; 0 uses the cores there are", low=0, high=256)
    confidence_floor: float = key(0.1, "boxes below this are never looked at", low=0.0, high=1)
    iou: float = key(
        0.45, "overlap above which the weaker of two boxes of a class is dropped", low=0.05, high=1
    )
    max_boxes: int = key(100, "most boxes kept per picture", low=1, high=1000)
    parity: bool = key(True, "compare the engine with the reference on known pictures when loading")
    trial: bool = key(
        True, "load a model file that nobody vouches for in a process of its own first"
    )
    fit_shape: bool = key(
        True, "run the model in the shape of the picture instead of a padded square, where it can"
    )
    max_batch: int = key(
        1, "frames of different calls run together where the model allows it", low=1, high=64
    )
    cache_dir: str = key("", "where engines and fetched models are kept; empty is models/cache")
    replace_after_s: float = key(
        2.5, "a detector that hangs or fails for so long is loaded anew; 0: never",
        low=0, high=600,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SchedulingSettings:
    """Whose picture the detector looks at, and until when."""

    max_wait_ms: float = key(
        20.0,
        "a picture that has waited for the detector for longer, and for longer than one takes, is "
        "passed over when its successor is due; 0 for no limit",
        low=0,
        high=1000,
    )
    batch_budget_ms: float = key(
        50.0,
        "pictures run together only as far as none is expected to have its boxes later than this",
        low=1,
        high=1000,
    )


@dataclass(frozen=True, slots=True)
class AnalysisSettings:
    """What is made of the boxes (docs/analytics.md)."""

    tracking: bool = key(True, "give every object a number that stays with it")


@dataclass(frozen=True, slots=True)
class ClipSettings:
    """Clips of what happens around events (docs/analytics.md)."""

    clips: bool = key(False, "keep a clip around every event")
    clips_dir: str = key("", "where clips are kept; empty: clips in state_dir")
    clip_before_s: float = key(5.0, "how much of what was before an event", low=0, high=60)
    clip_after_s: float = key(5.0, "how much of what comes behind it", low=0.5, high=60)
    clip_at_most_s: float = key(60.0, "longest clip; an event may last longer", low=1, high=600)
    clips_keep_days: float = key(7.0, "clips older than this are deleted", low=0.01, high=36_500)
    clips_max_mib: int = key(
        4096, "room for clips; beyond it the oldest go", low=1, high=100_000_000
    )
    clips_reserve_mib: int = key(
        256, "room that recording leaves on the disk", low=0, high=100_000_000
    )
    clips_memory_mib: int = key(
        64, "memory for pictures that may become clips, of all streams", low=1, high=65_536
    )


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where events are kept, and for how long (docs/analytics.md)."""

    store: str = key(
        "auto",
        "database of events: a URL (sqlite:////folder/events.db, postgresql://user@host/name), "
        "off, or auto: a file in state_dir, made with the first event",
        secret=True,
    )
    events_keep_days: float = key(30.0, "events older than this are deleted", low=0.01, high=36_500)
    events_max_mib: int = key(
        1024, "room for events and their pictures; beyond it the oldest go", low=1, high=10_000_000
    )


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Who may do what (docs/access.md)."""

    auth: str = key(
        "auto",
        "whether a key or token is needed; auto: not when listening on loopback only",
        choices=("auto", "on", "off"),
    )
    api_keys: tuple[str, ...] = key(
        (),
        "keys as KEY or SCOPES:STREAMS:KEY or that and :NAME, KEY in full or as sha256=HEX",
        secret=True,
    )
    api_keys_file: str = key("", "file of such keys, one a line; readable by its owner alone")
    token_secret: str = key(
        "",
        "what tokens are signed with, 32 characters or more; empty makes and keeps one",
        secret=True,
    )
    token_max_hours: float = key(
        720.0, "longest life of a token that is issued here", low=0.01, high=87600
    )
    state_dir: str = key(
        "", "where the secret and certificate made here are kept; empty: in the home folder"
    )
    allowed_origins: tuple[str, ...] = key(
        (), "other sites whose pages may use the API, as https://site.example"
    )
    frame_ancestors: tuple[str, ...] = key(
        (), "other sites whose pages may show /embed in a frame, as https://site.example"
    )
    allowed_hosts: tuple[str, ...] = key(
        (), "public names this server is reached by while no key or token is needed"
    )
    trusted_proxies: tuple[str, ...] = key(
        (), "addresses or networks whose X-Forwarded-For and -Proto are believed"
    )
    turn_secret: str = key(
        "",
        "secret shared with coturn (use-auth-secret): callers get short-lived credentials",
        secret=True,
    )
    turn_ttl_s: int = key(3600, "life of TURN credentials made with it", low=60, high=3600)


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What one address, key or token may ask, and when new calls are refused for running ones."""

    requests_per_s: float = key(
        50.0, "requests a caller may make in the long run; 0 for no limit", low=0, high=100_000
    )
    request_burst: int = key(200, "requests a caller may make at once", low=1, high=100_000)
    opens_per_s: float = key(
        5.0, "calls, streams and tokens a caller may open in the long run; 0: no limit",
        low=0, high=10_000,
    )  # fmt: skip
    open_burst: int = key(20, "calls, streams and tokens it may open at once", low=1, high=10_000)
    calls_per_s: float = key(
        20.0, "calls and viewers of all callers together in the long run; 0: no limit",
        low=0, high=10_000,
    )  # fmt: skip
    call_burst: int = key(40, "calls and viewers of all at once", low=1, high=10_000)
    max_calls_per_address: int = key(
        8, "calls of one address at the same time; 0 for no limit", low=0, high=1000
    )
    max_megapixels_per_s: float = key(
        0.0, "pictures coming in, beyond which new calls get 503; 0 for no limit", low=0, high=1e6
    )
    admit_loop_lag_ms: float = key(
        100.0, "p99 of the loop's lag beyond which new calls get 503; 0: not looked at",
        low=0, high=10_000,
    )  # fmt: skip
    admit_wait_ms: float = key(
        500.0, "p95 of the wait for the detector beyond which new calls get 503; 0: not looked at",
        low=0, high=10_000,
    )  # fmt: skip
    admit_cpu_percent: float = key(
        0.0, "share of all cores used here beyond which new calls get 503; 0: not looked at",
        low=0, high=100,
    )  # fmt: skip
    admit_memory_percent: float = key(
        85.0, "share of its memory used here beyond which new calls get 503; 0: not looked at",
        low=0, high=100,
    )  # fmt: skip
    memory_limit_mib: int = key(
        0, "memory this process may have; 0: what its cgroup grants, or the machine's",
        low=0, high=2**24,
    )  # fmt: skip
    idle_timeout_s: float = key(
        12.0, "a connection without a whole request for so long is closed", low=1, high=600
    )
    body_timeout_s: float = key(10.0, "longest a body may take to come in", low=0.1, high=600)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """HTTPS, which browsers want before they give a camera to a page from another machine."""

    tls: str = key(
        "auto",
        "self-signed makes a certificate and keeps it; auto uses the files, if named",
        choices=("auto", "off", "self-signed"),
    )
    tls_certificate: str = key("", "PEM file of the certificate and its chain")
    tls_key: str = key("", "PEM file of its private key; empty: it is in tls_certificate")


@dataclass(frozen=True, slots=True)
class OutletSettings:
    """Who may listen to events and detections by SSE and WebSocket (docs/events.md)."""

    max_listeners: int = key(
        500, "SSE and WebSocket listeners at the same time; one more gets 503", low=0, high=100_000
    )
    max_listeners_per_address: int = key(
        50, "listeners of one address; one more gets 429, 0 for no limit", low=0, high=100_000
    )
    listener_timeout_s: float = key(
        20.0, "a listener that takes nothing for so long is let go", low=0.5, high=600
    )
    keep_alive_s: float = key(
        15.0, "how often a listener is sent a sign of life while nothing happens", low=0.1, high=600
    )


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """States, counts and events to an MQTT broker (docs/events.md)."""

    mqtt_url: str = key(
        "", "broker as mqtt://host:1883 or mqtts://host:8883; empty: none", secret=True
    )
    mqtt_user: str = key("", "user name at the broker")
    mqtt_password: str = key("", "password at the broker", secret=True)
    mqtt_ca: str = key("", "PEM file of the broker's own authority; empty: the system's")
    mqtt_prefix: str = key("sightline", "what all topics begin with; one of its own each server")
    mqtt_discovery: str = key(
        "homeassistant", "where Home Assistant looks for new devices; empty: say nothing there"
    )
    mqtt_streams: tuple[str, ...] = key(
        ("*",), "streams that are told, by name or beginning such as front-*"
    )
    mqtt_classes: tuple[str, ...] = key(
        ("person",), "classes that Home Assistant gets entities of their own for"
    )
    mqtt_detections_per_s: float = key(
        0.0, "most detections a second of each stream; 0: only counts", low=0, high=100
    )
    mqtt_counts_per_s: float = key(
        1.0, "most changes of the counts a second of each stream", low=0.01, high=100
    )
    mqtt_snapshot_s: float = key(
        10.0, "a picture of each stream so often; 0: none", low=0, high=86_400
    )


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Events to other servers by HTTP (docs/events.md)."""

    webhook_urls: tuple[str, ...] = key((), "where each event is posted", secret=True)
    webhook_secret: str = key(
        "",
        "what posts are signed with, 16 characters or more or whsec_ and base64; empty: unsigned",
        secret=True,
    )
    webhook_streams: tuple[str, ...] = key(
        ("*",), "streams whose events are posted, by name or beginning such as front-*"
    )
    webhook_private: bool = key(False, "also post to private, loopback and link-local addresses")
    webhook_timeout_s: float = key(5.0, "longest wait for an answer", low=0.1, high=60)
    webhook_attempts: int = key(6, "how often a post is tried", low=1, high=20)
    webhook_retry_s: float = key(
        1.0, "wait before the second try; it doubles, up to a minute", low=0.01, high=60
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything, by group."""

    server: ServerSettings = field(default_factory=ServerSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    streams: StreamSettings = field(default_factory=StreamSettings)
    images: ImageSettings = field(default_factory=ImageSettings)
    sources: SourceSettings = field(default_factory=SourceSettings)
    rtc: RtcSettings = field(default_factory=RtcSettings)
    detector: DetectorSettings = field(default_factory=DetectorSettings)
    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    analysis: AnalysisSettings = field(default_factory=AnalysisSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    clips: ClipSettings = field(default_factory=ClipSettings)
    auth: AuthSettings = field(default_factory=AuthSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    outlets: OutletSettings = field(default_factory=OutletSettings)
    mqtt: MqttSettings = field(default_factory=MqttSettings)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)


GROUPS: tuple[tuple[str, type[Any]], ...] = tuple(typing.get_type_hints(Settings).items())


def _address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT`."""
    host, _, port_text = text.rpartition(":")
    port = int(port_text) if port_text.isdecimal() and len(port_text) <= 5 else -1
    if not host or not 0 <= port <= 65535 or (":" in host) != (host[0] == "[" and host[-1] == "]"):
        raise SettingsError(f"listen: {text!r} is not HOST:PORT, such as 127.0.0.1:8000")
    return host.strip("[]"), port
