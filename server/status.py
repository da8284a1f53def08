"""Everything there is to know about the running server, as one frozen snapshot.

`/api/stats`, `/metrics`, `/readyz`, the page and the bench all read from here.
"""

import asyncio
import dataclasses
import os
import resource
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

from server import __version__
from server.clock import NS_PER_S, now_ns, unix_ms
from server.desk import Desk, DeskStatistics
from server.history.clips import ClipRecorder, ClipStatistics
from server.history.journal import Journal, JournalStatistics
from server.inference import InferenceStatistics
from server.memory import resident_mib
from server.outlets.audience import Audience, AudienceStatistics
from server.outlets.bulletin import Bulletin, BulletinStatistics
from server.outlets.mqtt import MqttOutlet, MqttStatistics
from server.outlets.webhooks import Webhooks, WebhookStatistics
from server.pull.pulls import Pulls, PullStatistics
from server.registry import RegistryStatistics
from server.session import SessionStatistics
from server.telemetry import FrameTelemetry, LoopLagSampler, Summary


class HasInferenceStatistics(Protocol):
    def statistics(self) -> InferenceStatistics: ...


class HasRegistryStatistics(Protocol):
    @property
    def draining(self) -> bool: ...

    def statistics(self) -> RegistryStatistics: ...


@dataclass(frozen=True, slots=True)
class ProcessStatistics:
    """This process as the system sees it."""

    cpu_s: float
    resident_mib: float
    threads: int
    open_files: int
    tasks: int
    """Of the event loop."""
    uptime_s: float


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """One snapshot."""

    version: str
    taken_unix_ms: float
    ready: bool
    registry: RegistryStatistics
    inference: InferenceStatistics
    stages: dict[str, Summary]
    loop_lag: Summary
    bulletin: BulletinStatistics
    audience: AudienceStatistics
    desk: DeskStatistics
    mqtt: MqttStatistics
    webhooks: tuple[WebhookStatistics, ...]
    journal: JournalStatistics
    sources: tuple[PullStatistics, ...]
    clips: ClipStatistics
    process: ProcessStatistics


class Status:
    """Collects the snapshots of the parts; on the loop."""

    def __init__(
        self,
        registry: HasRegistryStatistics,
        inference: HasInferenceStatistics,
        frames: FrameTelemetry,
        loop_lag: LoopLagSampler,
        bulletin: Bulletin,
        audience: Audience,
        desk: Desk,
        mqtt: MqttOutlet,
        webhooks: Webhooks,
        journal: Journal,
        pulls: Pulls,
        clips: ClipRecorder,
    ) -> None:
        self._registry = registry
        self._inference = inference
        self._frames = frames
        self._loop_lag = loop_lag
        self._bulletin = bulletin
        self._audience = audience
        self._desk = desk
        self._mqtt = mqtt
        self._webhooks = webhooks
        self._journal = journal
        self._pulls = pulls
        self._clips = clips
        self._started_at_ns = now_ns()

    @property
    def is_ready(self) -> bool:
        """Whether new calls are served."""
        return not self._registry.draining and self.inference().state in ("none", "running")

    def inference(self) -> InferenceStatistics:
        """That part alone: the whole snapshot looks at every call, for milliseconds."""
        return self._inference.statistics()

    def statistics(self) -> ServerStatistics:
        inference = self.inference()
        return ServerStatistics(
            version=__version__,
            taken_unix_ms=unix_ms(),
            ready=self.is_ready,
            registry=self._registry.statistics(),
            inference=inference,
            stages=self._frames.statistics(),
            loop_lag=self._loop_lag.recorder.statistics(),
            bulletin=self._bulletin.statistics(),
            audience=self._audience.statistics(),
            desk=self._desk.statistics(),
            mqtt=self._mqtt.statistics(),
            webhooks=self._webhooks.statistics(),
            journal=self._journal.statistics(),
            sources=self._pulls.statistics(),
            clips=self._clips.statistics(),
            process=self._process(),
        )

    def _process(self) -> ProcessStatistics:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return ProcessStatistics(
            cpu_s=usage.ru_utime + usage.ru_stime,
            resident_mib=resident_mib(),
            threads=threading.active_count(),
            open_files=_open_files(),
            tasks=len(asyncio.all_tasks()),
            uptime_s=(now_ns() - self._started_at_ns) / NS_PER_S,
        )


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0


def model_json(inference: InferenceStatistics) -> dict[str, Any] | None:
    """What runs, for the page and the offer's answer; None without a detector."""
    if not inference.engines:
        return None
    return {
        "name": "+".join(engine.model for engine in inference.engines),
        "names": list(inference.names),
        "provider": "+".join(dict.fromkeys(engine.provider for engine in inference.engines)),
        "precision": "+".join(dict.fromkeys(engine.precision for engine in inference.engines)),
        "engines": [plain(engine) for engine in inference.engines],
    }


# What needs no look inside: a snapshot of many calls consists of little else.
ATOMS = frozenset((str, int, float, bool, type(None)))


def plain(value: Any) -> Any:
    """Snapshots as JSON takes them; `dataclasses.asdict` stumbles over read-only mappings."""
    kind: Any = type(value)
    if kind in ATOMS:
        return value
    names = field_names(kind)
    if names is not None:
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


@cache
def field_names(kind: Any) -> tuple[str, ...] | None:
    """Of a dataclass; None for other types."""
    if not dataclasses.is_dataclass(kind):
        return None
    return tuple(item.name for item in dataclasses.fields(kind))


def session_json(session: SessionStatistics) -> dict[str, Any]:
    return {
        **{
            item.name: getattr(session, item.name)
            for item in dataclasses.fields(session)
            if item.name not in ("options", "peer")
        },
        "options": session.options.to_json(),
        "peer": plain(session.peer),
    }


def statistics_json(statistics: ServerStatistics) -> dict[str, Any]:
    """The body of `/api/stats`."""
    return {
        "version": statistics.version,
        "taken_unix_ms": round(statistics.taken_unix_ms, 1),
        "ready": statistics.ready,
        "model": model_json(statistics.inference),
        "inference": {
            "state": statistics.inference.state,
            "inferred": statistics.inference.inferred,
            "failed": statistics.inference.failed,
            "swaps": statistics.inference.swaps,
            "taken_over": statistics.inference.taken_over,
            "abandoned": statistics.inference.abandoned,
            "publish_failed": statistics.inference.publish_failed,
            "last_error": statistics.inference.last_error,
            "mailbox": plain(statistics.inference.mailbox),
        },
        "calls": {
            "opened": statistics.registry.opened,
            "refused_full": statistics.registry.refused_full,
            "refused_offer": statistics.registry.refused_offer,
            "ended": statistics.registry.ended,
        },
        "streams": plain(statistics.registry.streams),
        "viewers": plain(statistics.registry.viewers),
        "pictures": {
            **plain(statistics.desk),
            "decode_ms": statistics.desk.decode_ms.to_json(),
            "answer_ms": statistics.desk.answer_ms.to_json(),
        },
        "sources": plain(statistics.sources),
        "sessions": [session_json(session) for session in statistics.registry.sessions],
        "stages_ms": {name: value.to_json() for name, value in statistics.stages.items()},
        "journal": {
            **plain(statistics.journal),
            "write_ms": statistics.journal.write_ms.to_json(),
        },
        "clips": plain(statistics.clips),
        "bulletin": plain(statistics.bulletin),
        "audience": plain(statistics.audience),
        "mqtt": plain(statistics.mqtt),
        "webhooks": plain(statistics.webhooks),
        "loop_lag_ms": statistics.loop_lag.to_json(),
        "process": plain(statistics.process),
    }
