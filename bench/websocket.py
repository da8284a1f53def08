"""JPEG over WebSocket, as stream-yolo's own client measures it: replay as fast as answers come.

Each client encodes a picture, sends it, waits for the answer and goes on with the next. The delay
runs from just before sending to just after the answer; encoding is not in it. Sightline and a
plain server of stream-yolo's shape take turns, each measurement with a server of its own.
"""

import argparse
import asyncio
import csv
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import cv2
import numpy as np

from bench.clip import MAX_BYTES, load_clip
from bench.command import OK, OVER_BUDGET, Progress, over_budget, publish, record_begun, run_async
from bench.command import show_progress as show
from bench.errors import ServerError, UsageError, check_ranges
from bench.options import add_clip, add_output, size
from bench.record import plain
from bench.server_process import TAKES_EVERY_CALL, RunningServer, started
from bench.statistics import Distribution, distribution, median
from bench.usage import Usage, UsageMeter
from server.clock import NS_PER_MS, NS_PER_S, now_ns
from server.errors import ModelError
from server.model_registry import resolve_model

SIGHTLINE, PLAIN = "sightline", "plain"
QUALITY: Final = 90
ANSWER_TIMEOUT_S: Final = 60.0
MAX_MESSAGE_BYTES: Final = 16 * 2**20
COLUMNS: Final = ("client_id", "frame", "delay_ms", "fps")
CLIP_FPS: Final = 30.0


@dataclass(frozen=True, slots=True)
class WebSocketSettings:
    """What is measured. Checked when made; raises `UsageError`."""

    clients: tuple[int, ...] = (1, 3, 6, 20)
    runs: int = 3
    size_wh: tuple[int, int] = (640, 640)
    clip: Path | None = None
    seconds: float = 10.0
    warmup_s: float = 2.0
    model: str = "yolo26n"
    against: tuple[str, ...] = (SIGHTLINE, PLAIN)
    url: str | None = None
    server_args: tuple[str, ...] = ()
    budget_ms: float | None = None

    def __post_init__(self) -> None:
        check_ranges(
            ("runs", self.runs, 1, 100),
            ("width", self.size_wh[0], 32, 8192),
            ("height", self.size_wh[1], 32, 8192),
            ("seconds", self.seconds, 0.2, 3600),
            ("warmup", self.warmup_s, 0, 600),
        )
        if not self.clients or not all(1 <= count <= 200 for count in self.clients):
            raise UsageError("--clients: numbers from 1 to 200 are wanted, such as 1,3,6,20")

    def to_record(self) -> dict[str, Any]:
        """For the record: names of files without their folders."""
        return {
            "clients": list(self.clients),
            "runs": self.runs,
            "size": f"{self.size_wh[0]}x{self.size_wh[1]}",
            "quality": QUALITY,
            "clip": "photographs" if self.clip is None else self.clip.name,
            "seconds": self.seconds,
            "warmup_s": self.warmup_s,
            "model": Path(self.model).name,
            "against": list(self.against),
            "url": self.url,
            "server_args": list(self.server_args),
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer, as the client saw it."""

    client_id: int
    frame: int
    delay_ms: float
    detections: int
    """-1 for an error."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One server, so many clients, one run."""

    server: str
    clients: int
    run: int
    delay_ms: Distribution | None
    fps: float
    """Answers a second of one client, the mean of all: what stream-yolo calls FPS."""
    fps_all: float
    """Answers a second of all clients together."""
    detections: float
    """A picture, on average: proof that both look."""
    errors: int
    server_ms: Distribution | None
    """As the server tells it, where it does."""
    server_process: Usage | None
    client_process: Usage | None


async def measure(
    settings: WebSocketSettings,
    progress: Progress,
    rows: Callable[[Measurement, list[Reply]], None],
) -> list[Measurement]:
    """All of it; `rows` gets the single answers of each measurement as it ends."""
    clip = load_clip(settings.clip, settings.size_wh, CLIP_FPS, MAX_BYTES)
    pictures = [frame.to_ndarray(format="bgr24") for frame in clip.video_frames]
    found = []
    for run in range(1, settings.runs + 1):
        # Turns change places from run to run: what the machine does beside falls on both.
        order = settings.against if run % 2 else settings.against[::-1]
        for clients in settings.clients:
            for server in order:
                what = f"run {run}, {clients} client{'s' * (clients > 1)}, {server}"
                progress(f"{what}: starting")
                async with AsyncExitStack() as stack:
                    running = await stack.enter_async_context(_server(settings, server))
                    sockets = await _connected(stack, running.url, clients)
                    replayers = [
                        Replayer(index, socket, pictures) for index, socket in enumerate(sockets)
                    ]
                    progress(f"{what}: measuring for {settings.seconds:g} s")
                    measurement, replies = await _measured(
                        settings, running, replayers, server, run
                    )
                found.append(measurement)
                rows(measurement, replies)
                delay = measurement.delay_ms
                progress(f"{what}: mean {delay.mean:.1f} ms" if delay else f"{what}: no answers")
    return found


async def _connected(
    stack: AsyncExitStack, server_url: str, clients: int
) -> list[aiohttp.ClientWebSocketResponse]:
    """A socket a client, which offers compression as stream-yolo's client does."""
    url = server_url.replace("http", "ws", 1) + "/ws/stream"
    connector = aiohttp.TCPConnector(limit=0)
    http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
    try:
        return [
            await stack.enter_async_context(
                http.ws_connect(url, compress=15, max_msg_size=MAX_MESSAGE_BYTES)
            )
            for _ in range(clients)
        ]
    except aiohttp.ClientError as error:
        raise ServerError(f"{url} takes no WebSocket: {error}") from error


async def _measured(
    settings: WebSocketSettings,
    running: RunningServer,
    replayers: Sequence["Replayer"],
    server: str,
    run: int,
) -> tuple[Measurement, list[Reply]]:
    await _replay(replayers, settings.warmup_s)
    for replayer in replayers:
        replayer.forget()
    server_meter, own_meter = UsageMeter(running.pid), UsageMeter(os.getpid())
    begun_at_ns = now_ns()
    await _replay(replayers, settings.seconds)
    elapsed_s = (now_ns() - begun_at_ns) / NS_PER_S
    replies = [reply for replayer in replayers for reply in replayer.replies]
    server_ms = [value for replayer in replayers for value in replayer.server_ms]
    good = [reply for reply in replies if reply.detections >= 0]
    return (
        Measurement(
            server=server,
            clients=len(replayers),
            run=run,
            delay_ms=distribution([reply.delay_ms for reply in replies]),
            fps=sum(1000 / reply.delay_ms for reply in replies) / max(1, len(replies)),
            fps_all=len(replies) / elapsed_s,
            detections=sum(reply.detections for reply in good) / max(1, len(good)),
            errors=len(replies) - len(good),
            server_ms=distribution(server_ms),
            server_process=server_meter.read(),
            client_process=own_meter.read(),
        ),
        replies,
    )


def _server(settings: WebSocketSettings, server: str) -> Any:
    """The context of the server to be measured."""
    if settings.url is not None:
        return _Running(settings.url)
    if server == SIGHTLINE:
        model = ["--model", settings.model]
        args = ["server", "--host", "127.0.0.1", "--max-sockets=1000", *TAKES_EVERY_CALL]
        return started([*args, *model, *settings.server_args])
    from bench.peer_environments import peer_environment

    try:
        path = resolve_model(settings.model)
    except ModelError as error:
        raise UsageError(f"--model: {error}") from error
    environment = peer_environment("websocket")
    return started(
        ["bench.peer_servers.stream_yolo", "--model", str(path.resolve())], environment.python
    )


class _Running:
    """A server that somebody else started."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    async def __aenter__(self) -> RunningServer:
        return RunningServer(self._url, None, None)

    async def __aexit__(self, *exc: object) -> None:
        pass


async def _replay(replayers: Sequence["Replayer"], seconds: float) -> None:
    until_ns = now_ns() + round(seconds * NS_PER_S)
    async with asyncio.TaskGroup() as group:
        for replayer in replayers:
            group.create_task(replayer.replay(until_ns))


class Replayer:
    """One client. Keeps one row an answer; bound: the time of a run."""

    def __init__(
        self,
        client_id: int,
        socket: aiohttp.ClientWebSocketResponse,
        pictures: Sequence[np.ndarray[Any, Any]],
    ) -> None:
        self._client_id = client_id
        self._socket = socket
        self._pictures = pictures
        # Clients are at different places of the clip.
        self._next = 7 * client_id
        self.replies: list[Reply] = []
        self.server_ms: list[float] = []

    def forget(self) -> None:
        self.replies.clear()
        self.server_ms.clear()

    async def replay(self, until_ns: int) -> None:
        """One picture after the other, as fast as answers come."""
        while now_ns() < until_ns:
            jpeg = _encode(self._pictures[self._next % len(self._pictures)])
            self._next += 1
            sent_at_ns = now_ns()
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    await self._socket.send_bytes(jpeg)
                    text = await self._socket.receive_str()
            except (TimeoutError, TypeError, ConnectionError, aiohttp.ClientError) as error:
                raise ServerError(f"client {self._client_id} got no answer: {error!r}") from error
            delay_ms = (now_ns() - sent_at_ns) / NS_PER_MS
            answer = json.loads(text)
            found = answer.get("detections")
            count = len(found) if isinstance(found, list) else -1
            self.replies.append(Reply(self._client_id, len(self.replies) + 1, delay_ms, count))
            if isinstance(answer.get("server_ms"), float):
                self.server_ms.append(answer["server_ms"])


def _encode(bgr: np.ndarray[Any, Any]) -> bytes:
    encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return encoded.tobytes()


# --- what it says ---


def summarise(found: Sequence[Measurement]) -> dict[str, Any]:
    """By server and number of clients: the mean over the runs of each run's figures."""
    summary: dict[str, Any] = {}
    for server in dict.fromkeys(one.server for one in found):
        rows = {}
        for clients in dict.fromkeys(one.clients for one in found):
            runs = [one for one in found if (one.server, one.clients) == (server, clients)]
            delays = [one.delay_ms for one in runs if one.delay_ms is not None]
            if not delays:
                continue
            mean_ms = _mean([delay.mean for delay in delays])
            p99_ms = _mean([delay.p99 for delay in delays])
            rows[str(clients)] = {
                "mean_ms": mean_ms,
                "p95_ms": _mean([delay.p95 for delay in delays]),
                "p99_ms": p99_ms,
                "p99_over_mean": p99_ms / mean_ms,
                "mean_ms_of_runs": [delay.mean for delay in delays],
                "fps": _mean([one.fps for one in runs]),
                "fps_all": _mean([one.fps_all for one in runs]),
                "detections": _mean([one.detections for one in runs]),
                "errors": sum(one.errors for one in runs),
            }
        summary[server] = rows
    if set(summary) == {SIGHTLINE, PLAIN}:
        ours, theirs = summary[SIGHTLINE], summary[PLAIN]
        summary["plain_over_sightline"] = {
            clients: median(
                [
                    other / own
                    for own, other in zip(
                        ours[clients]["mean_ms_of_runs"],
                        theirs[clients]["mean_ms_of_runs"],
                        strict=False,
                    )
                ]
            )
            for clients in ours
            if clients in theirs
        }
    return summary


def describe(summary: dict[str, Any]) -> str:
    """A table for people."""
    lines = [
        f"{'server':<10} {'clients':>7} {'mean ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'p99/mean':>8} "
        f"{'fps':>6} {'fps all':>8} {'found':>6} {'errors':>6}"
    ]
    for server, rows in summary.items():
        if server == "plain_over_sightline":
            continue
        for clients, row in rows.items():
            lines.append(
                f"{server:<10} {clients:>7} {row['mean_ms']:>8.1f} {row['p95_ms']:>8.1f} "
                f"{row['p99_ms']:>8.1f} {row['p99_over_mean']:>8.2f} {row['fps']:>6.1f} "
                f"{row['fps_all']:>8.1f} {row['detections']:>6.1f} {row['errors']:>6}"
            )
    for clients, ratio in summary.get("plain_over_sightline", {}).items():
        lines.append(f"the plain server takes {ratio:.2f} times as long with {clients} clients")
    return "\n".join(lines)


def write_csv(folder: Path, measurement: Measurement, replies: Sequence[Reply]) -> Path:
    """One file a measurement, with the columns of stream-yolo's client."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{measurement.server}-{measurement.clients}-run{measurement.run}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for reply in replies:
            fps = 1000 / reply.delay_ms
            writer.writerow((reply.client_id, reply.frame, f"{reply.delay_ms:.3f}", f"{fps:.3f}"))
    return path


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _clients(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers such as 1,3,6,20") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Clients replay a clip as JPEGs over WebSocket as fast as answers come, against Sightline "
        "and against a plain server of stream-yolo's shape with the same model, taking turns. "
        "Writes a CSV a measurement beside the record."
    )
    add = parser.add_argument
    add(
        "--clients",
        type=_clients,
        default=(1, 3, 6, 20),
        metavar="N,N",
        help="how many at the same time, one after the other (1,3,6,20)",
    )
    add("--runs", type=int, default=3, help="runs, in turns; means count (3)")
    add(
        "--size",
        type=size,
        default=(640, 640),
        metavar="WxH",
        help="pictures are scaled to this before they are sent, as stream-yolo's client does "
        "(640x640)",
    )
    add_clip(parser)
    add("--seconds", type=float, default=10.0, help="measured time of each measurement (10)")
    add("--warmup", type=float, default=2.0, help="seconds before, not measured (2)")
    add("--model", default="yolo26n", metavar="NAME", help="of both servers (yolo26n)")
    add(
        "--against",
        choices=(SIGHTLINE, PLAIN, "both"),
        default="both",
        help="which servers are measured (both)",
    )
    add("--url", help="measure a running server of the same protocol instead of starting one")
    add(
        "--server-arg",
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument of Sightline; repeatable, as --server-arg=--threads=1",
    )
    add(
        "--budget-ms",
        type=float,
        metavar="MS",
        help="exit 1 when Sightline's p95 with the fewest clients passes",
    )
    add_output(parser)


def run(options: argparse.Namespace) -> int:
    against = (SIGHTLINE, PLAIN) if options.against == "both" else (options.against,)
    settings = WebSocketSettings(
        clients=options.clients,
        runs=options.runs,
        size_wh=options.size,
        clip=options.clip,
        seconds=options.seconds,
        warmup_s=options.warmup,
        model=options.model,
        against=(SIGHTLINE,) if options.url else against,
        url=options.url,
        server_args=tuple(options.server_arg),
        budget_ms=options.budget_ms,
    )
    make_record = record_begun("websocket")
    kept: list[tuple[Measurement, list[Reply]]] = []
    found = run_async(measure(settings, show, lambda one, rows: kept.append((one, rows))))
    summary = summarise(found)
    record = make_record(settings.to_record(), summary, plain(found))
    instant = record.measured_utc.replace(":", "").replace("-", "")
    folder = options.out / f"websocket-{instant}"
    for measurement, replies in kept:
        write_csv(folder, measurement, replies)
    first = summary.get(SIGHTLINE, {}).get(str(min(settings.clients)), {})
    over, verdict = over_budget(first.get("p95_ms"), settings.budget_ms)
    text = f"{describe(summary)}\nsingle answers: {folder.name}/*.csv\n{verdict}"
    publish(record, options.out, "+".join(settings.against), text, as_json=options.json)
    return OVER_BUDGET if over else OK
