"""What the routes take and answer, as facts: what `/api/openapi.json` is made from.

A new route gets one entry in `FACTS`; a test names it until it has one. What is known elsewhere
is not repeated: the summary is the handler's docstring, parameters of the path and the scope come
from the router and the gate's `RULES`, bodies that are snapshots are described by their classes.
Bodies made by hand are described by the shapes below; a test holds them to real answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

from server.call_options import CallOptions
from server.desk import DoorStatistics
from server.detections import EngineReport
from server.history.clips import ClipStatistics
from server.hub import EncodingStatistics
from server.mailbox import MailboxStatistics
from server.outlets.audience import AudienceStatistics
from server.outlets.bulletin import BulletinStatistics
from server.outlets.mqtt import MqttStatistics
from server.outlets.webhooks import WebhookStatistics
from server.pull.pulls import PullStatistics
from server.rtc.relay import RelayStatistics
from server.session import SessionStatistics
from server.status import ProcessStatistics
from server.stills import StillsStatistics
from server.stream import StreamStatistics
from server.viewer import ViewerStatistics

JSON, SDP = "application/json", "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"

# --- shapes of JSON bodies ---


class Model(TypedDict):
    name: str
    names: list[str]
    provider: str
    precision: str
    engines: list[EngineReport]


class Options(TypedDict, total=False):
    mode: str
    confidence: float
    classes: list[str] | None


class OfferOptions(Options, total=False):
    stream: str
    """Makes the call the source of this stream."""


class OptionsBody(TypedDict):
    options: Options


class OptionsAnswer(TypedDict):
    options: CallOptions


class Offer(TypedDict):
    sdp: str
    type: Literal["offer"]
    options: NotRequired[OfferOptions]


class Answer(TypedDict):
    sdp: str
    type: Literal["answer"]
    session: str
    options: CallOptions
    model: Model | None
    names: list[str]
    codec: str
    encoder: str


class Ended(TypedDict):
    ended: bool


class Index(TypedDict):
    status: str
    model_loaded: bool
    version: str
    ready: bool


class IceServer(TypedDict):
    urls: str
    username: NotRequired[str]
    credential: NotRequired[str]


class Defaults(TypedDict):
    mode: str
    confidence: float


class PageLimits(TypedDict):
    max_sessions: int


class ClientConfig(TypedDict):
    version: str
    auth_required: bool
    ice_servers: list[IceServer]
    modes: list[str]
    defaults: Defaults
    demo: bool
    limits: PageLimits
    model: Model | None


class ModelChoice(TypedDict):
    name: str
    licence: str


class Models(TypedDict):
    models: list[ModelChoice]
    running: Model | None


class ModelName(TypedDict):
    model: str


class ModelAnswer(TypedDict):
    model: Model | None


class Health(TypedDict):
    status: Literal["ok"]


class Readiness(TypedDict):
    ready: bool
    detector: str
    last_error: str
    calls: int
    max_sessions: int


class Durations(TypedDict):
    count: int
    p50: float
    p95: float
    p99: float
    max: float


class InferenceNow(TypedDict):
    state: str
    inferred: int
    failed: int
    swaps: int
    taken_over: int
    abandoned: int
    publish_failed: int
    last_error: str
    mailbox: MailboxStatistics


class Calls(TypedDict):
    opened: int
    refused_full: int
    refused_offer: int
    ended: dict[str, int]


class Access(TypedDict):
    required: bool
    keys: int
    refused: dict[str, int]
    ended_by_token: int


class LimitsNow(TypedDict):
    settings: dict[str, float]
    refused: dict[str, int]
    callers: int
    callers_forgotten: int
    load: dict[str, float]


class PictureStats(TypedDict):
    doors: dict[str, DoorStatistics]
    waiting: int
    waiting_megapixels: float
    decode_ms: Durations
    answer_ms: Durations


class JournalNow(TypedDict):
    state: Literal["off", "idle", "ready", "away"]
    last_error: str
    written: int
    waiting: int
    lost: int
    pictures_lost: int
    forgotten: int
    write_ms: Durations


class Stats(TypedDict):
    version: str
    taken_unix_ms: float
    ready: bool
    model: Model | None
    inference: InferenceNow
    calls: Calls
    streams: list[StreamStatistics]
    viewers: list[ViewerStatistics]
    pictures: PictureStats
    sources: list[PullStatistics]
    sessions: list[SessionStatistics]
    stages_ms: dict[str, Durations]
    journal: JournalNow
    clips: ClipStatistics
    bulletin: BulletinStatistics
    audience: AudienceStatistics
    mqtt: MqttStatistics
    webhooks: list[WebhookStatistics]
    loop_lag_ms: Durations
    process: ProcessStatistics
    access: Access
    limits: LimitsNow


class StreamUrls(TypedDict):
    whep: str
    whip: str
    snapshot: str
    mjpeg: str
    detections: str


class StreamNow(TypedDict):
    name: str
    live: bool
    source: str
    options: CallOptions | None
    age_s: float
    size: list[int]
    fps: float
    frames: int
    dropped: dict[str, int]
    sources: int
    viewers: int
    encodings: list[EncodingStatistics]
    relay: RelayStatistics
    pull: PullStatistics | None
    mjpeg: StillsStatistics
    urls: StreamUrls


class StreamWish(TypedDict):
    name: str
    source: str
    options: NotRequired[Options]


class StreamList(TypedDict):
    streams: list[StreamNow]


class ViewerNow(TypedDict):
    name: str
    by: str
    """The key or token, by what is no secret of it; anyone where none is needed."""
    address: str
    way: Literal["webrtc", "mjpeg"]
    view: str
    rung: str
    codec: str
    state: str
    age_s: float
    rtt_ms: float | None
    packets_sent: int
    packets_resent: int


class StreamViewers(TypedDict):
    viewers: list[ViewerNow]


class ZoneShape(TypedDict):
    id: str
    label: NotRequired[str]
    points: list[list[float]]
    classes: NotRequired[list[str] | None]
    events: NotRequired[list[Literal["enter", "leave", "dwell"]]]
    dwell_s: NotRequired[float | None]
    anchor: NotRequired[Literal["bottom", "centre"]]


class LineShape(TypedDict):
    id: str
    label: NotRequired[str]
    points: list[list[float]]
    classes: NotRequired[list[str] | None]
    anchor: NotRequired[Literal["bottom", "centre"]]


class MaskShape(TypedDict):
    id: str
    points: list[list[float]]
    kind: NotRequired[Literal["fill", "blur"]]


class ZoneLayout(TypedDict, total=False):
    zones: list[ZoneShape]
    lines: list[LineShape]
    masks: list[MaskShape]
    appear: list[str]


class ZoneCount(TypedDict):
    inside: int
    classes: dict[str, int]
    entered: int
    left: int
    longest_dwell_s: float


class LineCount(TypedDict):
    forward: int
    backward: int


class Counts(TypedDict):
    zones: dict[str, ZoneCount]
    lines: dict[str, LineCount]
    not_followed: int


# "class" is no name that a class could have.
EventTold = TypedDict(
    "EventTold",
    {
        "id": str,
        "stream": str,
        "kind": Literal["enter", "leave", "dwell", "cross", "appear", "signal"],
        "class": str,
        "track_id": int | None,
        "zone": str | None,
        "started_unix_ms": int,
        "ended_unix_ms": int | None,
        "score": float,
        "box": list[float] | None,
        "direction": NotRequired[Literal["forward", "backward"]],
        "snapshot_url": str | None,
        "interrupted": bool,
        "acknowledged_unix_ms": int | None,
        "acknowledged_by": str | None,
    },
)


class ClipTold(TypedDict):
    id: str
    stream: str
    event_id: str | None
    started_unix_ms: int
    duration_ms: int
    bytes: int
    size: list[int]
    url: str
    thumbnail_url: str


class ClipPage(TypedDict):
    clips: list[ClipTold]
    next: str | None


class EventPage(TypedDict):
    events: list[EventTold]
    next: str | None


class TokenWish(TypedDict):
    scopes: list[str]
    streams: NotRequired[list[str]]
    ttl: NotRequired[str]
    name: NotRequired[str]


class Token(TypedDict):
    token: str
    id: str
    scopes: list[str]
    streams: list[str]
    expires_unix_ms: int


class Revoked(TypedDict):
    revoked: bool
    ended: int


class Ticket(TypedDict):
    ticket: str
    expires_in_s: float


FoundRow = TypedDict(
    "FoundRow",
    {
        "box": list[float],
        "confidence": float,
        "class_id": int,
        "class": str,
        "landmarks": NotRequired[list[list[float]]],
    },
)


class PictureRow(TypedDict):
    """One picture of the request; `error` instead of the rest for one that is wrong."""

    name: str
    error: NotRequired[str]
    size: NotRequired[list[int]]
    detections: NotRequired[list[FoundRow]]
    stages_ms: NotRequired[dict[str, float]]
    server_ms: NotRequired[float]


class DetectAnswer(TypedDict):
    model: str
    pictures: list[PictureRow]


class Prediction(TypedDict):
    label: str
    confidence: float
    x_min: int
    y_min: int
    x_max: int
    y_max: int


class DeepstackAnswer(TypedDict):
    success: Literal[True]
    message: str
    predictions: list[Prediction]
    count: int
    duration: int
    command: str
    moduleId: str
    moduleName: str
    code: Literal[200]
    inferenceMs: int
    processMs: int
    analysisRoundTripMs: int
    executionProvider: str
    canUseGPU: bool


class DeepstackRefusal(TypedDict):
    success: Literal[False]
    error: str
    code: int
    predictions: list[Prediction]
    duration: int


class DeepstackModels(TypedDict):
    success: Literal[True]
    models: list[str]
    code: Literal[200]


class DeepstackAlive(TypedDict):
    success: Literal[True]
    code: Literal[200]


# --- facts of routes ---


@dataclass(frozen=True, slots=True)
class Body:
    """A request's or an answer's body: its content type, and the shape where it is JSON."""

    content_type: str
    shape: Any = str


NOTHING = None


@dataclass(frozen=True, slots=True)
class Facts:
    """One route. `answers` by status, None for one without a body; `refusals` are the statuses of
    problem bodies beyond those that follow from the gate's rule, the path and the body."""

    tag: str
    answers: Mapping[int, Body | None]
    takes: Body | None = None
    refusals: tuple[int, ...] = ()
    query: Mapping[str, str] = field(default_factory=dict)
    """Parameters after the `?`, and what they mean."""
    headers: tuple[str, ...] = ()
    """Of the answer, beyond the usual ones."""


def answers(shape: Any, status: int = 200) -> dict[int, Body | None]:
    """JSON of this shape."""
    return {status: Body(JSON, shape)}


LISTENING = {
    "topics": "detections, events, status: one or more, by comma",
    "fps": "most detections a second of each stream",
    "last_event_id": "instead of the Last-Event-ID header",
    "ticket": "a ticket of /api/tickets, where no Authorization header can be sent",
}
LISTENING_TO = LISTENING | {"stream": "names by comma; without it all that may be viewed"}

PICTURED = {
    "annotated": "1 (default) with boxes, 0 without",
    "width": "in pixels, 16 to 7680; never more than the stream's own",
    "ticket": "a ticket of /api/tickets, where no Authorization header can be sent",
}

CREATED: Mapping[int, Body | None] = {201: Body(SDP)}
CREATED_HEADERS = ("Location", "ETag", "Accept-Patch", "Link")
DISCOVERED: Mapping[int, Body | None] = {204: NOTHING}
PATCHED: Mapping[int, Body | None] = {204: NOTHING}
GONE: Mapping[int, Body | None] = {200: NOTHING}

FORM = "multipart/form-data"
# Under /v1/ refusals have the shape that those callers know.
DEEPSTACK_REFUSALS: Mapping[int, Body | None] = {
    status: Body(JSON, DeepstackRefusal)
    for status in (400, 401, 403, 404, 408, 413, 415, 422, 429, 503)
}
DETECTED: Mapping[int, Body | None] = {**answers(DeepstackAnswer), **DEEPSTACK_REFUSALS}

# By method and path as the router has it, like the gate's RULES.
FACTS: Mapping[tuple[str, str], Facts] = {
    ("GET", "/"): Facts("page", {200: Body(JSON, Index)}),
    ("GET", "/tile.js"): Facts("page", {200: Body("text/javascript")}),
    ("GET", "/embed/{stream}"): Facts("page", {200: Body("text/html")}),
    ("GET", "/dashboard"): Facts("page", {200: Body("text/html")}),
    ("GET", "/api/qr"): Facts(
        "page",
        {200: Body("image/svg+xml")},
        refusals=(400,),
        query={"text": "an address of this server"},
    ),
    ("GET", "/healthz"): Facts("state", answers(Health)),
    ("GET", "/readyz"): Facts("state", answers(Readiness) | answers(Readiness, 503)),
    ("GET", "/metrics"): Facts("state", {200: Body("text/plain")}),
    ("GET", "/api/stats"): Facts("state", answers(Stats)),
    ("GET", "/api/openapi.json"): Facts("state", answers(dict[str, Any])),
    ("GET", "/api/client-config"): Facts("page", answers(ClientConfig)),
    ("POST", "/offer"): Facts(
        "calls", answers(Answer), Body(JSON, Offer), refusals=(409, 422, 503)
    ),
    ("GET", "/sessions/{id}"): Facts("calls", answers(SessionStatistics)),
    ("PATCH", "/sessions/{id}"): Facts(
        "calls", answers(OptionsAnswer), Body(JSON, OptionsBody), refusals=(422,)
    ),
    ("DELETE", "/sessions/{id}"): Facts("calls", answers(Ended)),
    ("POST", "/whip/{stream}"): Facts(
        "whip", CREATED, Body(SDP), refusals=(409, 422, 503), headers=CREATED_HEADERS
    ),
    ("GET", "/whip/{stream}"): Facts("whip", DISCOVERED),
    ("PATCH", "/whip/{stream}/{id}"): Facts(
        "whip", PATCHED, Body(FRAGMENT), refusals=(412, 422, 428)
    ),
    ("DELETE", "/whip/{stream}/{id}"): Facts("whip", GONE),
    ("POST", "/whep/{stream}"): Facts(
        "whep",
        CREATED,
        Body(SDP),
        refusals=(406, 409, 422, 503),
        query={
            "rung": "full (default) or low: half the sides",
            "view": "annotated (default), data: the source's packets and the boxes beside them, "
            "or raw: those packets alone",
        },
        headers=CREATED_HEADERS,
    ),
    ("GET", "/whep/{stream}"): Facts("whep", DISCOVERED),
    ("PATCH", "/whep/{stream}/{id}"): Facts(
        "whep", PATCHED, Body(FRAGMENT), refusals=(412, 422, 428)
    ),
    ("DELETE", "/whep/{stream}/{id}"): Facts("whep", GONE),
    ("GET", "/api/streams"): Facts("streams", answers(StreamList)),
    ("POST", "/api/streams"): Facts(
        "streams",
        answers(StreamNow, 201),
        Body(JSON, StreamWish),
        refusals=(404, 409, 422, 503),
        headers=("Location",),
    ),
    ("GET", "/api/streams/{stream}"): Facts("streams", answers(StreamNow)),
    ("PATCH", "/api/streams/{stream}"): Facts(
        "streams", answers(StreamNow), Body(JSON, OptionsBody), refusals=(409, 422)
    ),
    ("DELETE", "/api/streams/{stream}"): Facts("streams", answers(Ended)),
    ("GET", "/api/streams/{stream}/viewers"): Facts("streams", answers(StreamViewers)),
    ("GET", "/api/streams/{stream}/snapshot.jpg"): Facts(
        "streams", {200: Body("image/jpeg")}, refusals=(400, 409, 503), query=PICTURED
    ),
    ("GET", "/api/streams/{stream}/mjpeg"): Facts(
        "streams",
        {200: Body("multipart/x-mixed-replace")},
        refusals=(400, 409, 503),
        query=PICTURED | {"fps": "most pictures a second, 0.1 to 30; 10 unless told"},
    ),
    ("GET", "/api/streams/{stream}/detections"): Facts(
        "events", {200: Body("text/event-stream")}, refusals=(400, 503), query=LISTENING
    ),
    ("GET", "/api/events/live"): Facts(
        "events", {200: Body("text/event-stream")}, refusals=(400, 404, 503), query=LISTENING_TO
    ),
    ("GET", "/ws/detections"): Facts(
        "events", {101: NOTHING}, refusals=(400, 404, 503), query=LISTENING_TO
    ),
    ("GET", "/api/streams/{stream}/zones"): Facts("zones", answers(ZoneLayout), refusals=(503,)),
    ("PUT", "/api/streams/{stream}/zones"): Facts(
        "zones", answers(ZoneLayout), Body(JSON, ZoneLayout), refusals=(409, 422, 503)
    ),
    ("GET", "/api/streams/{stream}/counts"): Facts("zones", answers(Counts), refusals=(503,)),
    ("GET", "/api/events"): Facts(
        "history",
        answers(EventPage),
        refusals=(400, 404, 503),
        query={
            "stream": "of this stream only",
            "class": "of this class only",
            "zone": "in this zone or over this line only",
            "kind": "enter, leave, dwell, cross, appear or signal",
            "since": "begun at or after, milliseconds since 1970",
            "until": "begun before, milliseconds since 1970",
            "acknowledged": "true or false",
            "limit": "events a page, 1 to 500, 50 by default",
            "cursor": "next of the page before",
        },
    ),
    ("GET", "/api/events/{id}"): Facts("history", answers(EventTold), refusals=(503,)),
    ("GET", "/api/events/{id}/snapshot.jpg"): Facts(
        "history", {200: Body("image/jpeg")}, refusals=(503,)
    ),
    ("POST", "/api/events/{id}/acknowledge"): Facts("history", answers(EventTold), refusals=(503,)),
    ("GET", "/api/streams/{stream}/clips"): Facts(
        "history",
        answers(ClipPage),
        refusals=(400, 503),
        query={
            "since": "begun at or after, milliseconds since 1970",
            "until": "begun before, milliseconds since 1970",
            "limit": "clips a page, 1 to 500, 50 by default",
            "cursor": "next of the page before",
        },
    ),
    ("GET", "/api/clips/{id}.mp4"): Facts(
        "history", {200: Body("video/mp4"), 206: Body("video/mp4")}, refusals=(503,)
    ),
    ("GET", "/api/clips/{id}.jpg"): Facts("history", {200: Body("image/jpeg")}, refusals=(503,)),
    ("GET", "/api/models"): Facts("detector", answers(Models)),
    ("PUT", "/api/model"): Facts(
        "detector", answers(ModelAnswer), Body(JSON, ModelName), refusals=(404, 422, 503)
    ),
    ("POST", "/api/tokens"): Facts("access", answers(Token, 201), Body(JSON, TokenWish)),
    ("DELETE", "/api/tokens/{token}"): Facts("access", answers(Revoked), refusals=(400, 503)),
    ("POST", "/api/tickets"): Facts("access", answers(Ticket, 201)),
    ("GET", "/ws/stream"): Facts(
        "pictures",
        {101: NOTHING},
        refusals=(409, 422),
        query={
            "confidence": "least confidence of what is sent (0.4)",
            "classes": "names, separated by commas; all without",
            "stream": "lets others watch the pictures under this name",
            "ticket": "from POST /api/tickets, where a key or token is needed",
        },
    ),
    ("POST", "/api/detect"): Facts(
        "pictures",
        answers(DetectAnswer),
        Body("image/jpeg"),
        refusals=(422, 503),
        query={
            "confidence": "least confidence of what is told",
            "classes": "names, separated by commas; all without",
            "annotate": "1: the answer is the picture with boxes, as JPEG",
        },
    ),
    ("POST", "/v1/vision/detection"): Facts("pictures", DETECTED, Body(FORM)),
    ("POST", "/v1/vision/custom/{model}"): Facts("pictures", DETECTED, Body(FORM)),
    ("POST", "/v1/vision/custom/list"): Facts(
        "pictures", {**answers(DeepstackModels), **DEEPSTACK_REFUSALS}
    ),
    ("GET", "/v1/status/ping"): Facts(
        "pictures", {**answers(DeepstackAlive), **DEEPSTACK_REFUSALS}
    ),
}
