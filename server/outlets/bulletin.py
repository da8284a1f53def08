"""What happens in the streams, told to whoever listens. On the loop only.

Topics: `detections`, of which a listener that is late gets only the newest of each stream;
`events` and `status`, which wait in order. Bound: WAITING_AT_MOST a listener; the oldest is
dropped, and counted. The last REPLAY_AT_MOST events are kept for listeners that come back.
"""

import asyncio
import json
import secrets
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.clock import NS_PER_S, now_ns, s_to_ns

DETECTIONS, EVENTS, STATUS = "detections", "events", "status"
TOPICS = (DETECTIONS, EVENTS, STATUS)
WAITING_AT_MOST = 256
REPLAY_AT_MOST = 1024

# What a `status` message says of a stream.
WAITING, LIVE, NO_SIGNAL, ENDED = "waiting", "live", "no_signal", "ended"


class Closed(Exception):
    """The subscription has ended; there will be nothing further."""


class Notice:
    """One message, whose text is made once for all who want it. Read-only."""

    __slots__ = ("_text", "message", "names", "number", "stream", "topic")

    def __init__(
        self,
        number: int,
        topic: str,
        stream: str,
        message: Mapping[str, Any],
        names: Sequence[str] = (),
    ) -> None:
        self.number = number
        """Counts all notices of this bulletin."""
        self.topic = topic
        self.stream = stream
        self.message = message
        self.names = names
        """What the class ids of detections mean."""
        self._text = ""

    @property
    def text(self) -> str:
        """The message as JSON on one line."""
        if not self._text:
            self._text = json.dumps(self.message, separators=(",", ":"))
        return self._text


@dataclass(frozen=True, slots=True)
class SubscriptionStatistics:
    """Counts since it began, and what waits now."""

    taken: int
    dropped: int
    """Events and states that fell out, the oldest first."""
    replaced: int
    """Detections that a newer one of their stream replaced."""
    waiting: int


@dataclass(frozen=True, slots=True)
class BulletinStatistics:
    """Counts since start."""

    posted: dict[str, int]
    """By topic; detections that nobody wanted are not made and not counted."""
    subscriptions: int
    dropped: int
    replaced: int


class Subscription:
    """One listener, made by `Bulletin.subscribe`; `close` it. For one reader."""

    def __init__(
        self,
        end: Callable[["Subscription"], None],
        topics: Collection[str],
        stream: str | None,
        allows: Callable[[str], bool] | None,
        detections_every_s: float,
    ) -> None:
        self.topics = frozenset(topics)
        self._end = end
        self._stream = stream
        self._allows = allows
        self._every_ns = s_to_ns(detections_every_s)
        self._waiting: deque[Notice] = deque()
        # The newest detections of each stream, in the order of turns, and when the next are due.
        self._newest: dict[str, Notice] = {}
        self._due_at_ns: dict[str, int] = {}
        self._ready = asyncio.Event()
        self._closed = False
        self._finishing = False
        self._taken = 0
        self._dropped = 0
        self._replaced = 0

    def takes(self, stream: str) -> bool:
        """Whether what happens in this stream is for it."""
        if self._stream is not None and self._stream != stream:
            return False
        return self._allows is None or self._allows(stream)

    def put(self, notice: Notice) -> None:
        """Leave a notice; never waits."""
        if self._closed or self._finishing or not self.takes(notice.stream):
            return
        if notice.topic == DETECTIONS:
            self._replaced += notice.stream in self._newest
            self._newest[notice.stream] = notice
        else:
            if len(self._waiting) >= WAITING_AT_MOST:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(notice)
        self._ready.set()

    async def next(self) -> Notice:
        """The next notice; events and states go before detections. Raises Closed at the end."""
        while True:
            if self._closed:
                raise Closed
            if self._waiting:
                self._taken += 1
                return self._waiting.popleft()
            if self._finishing:
                raise Closed
            at_ns = now_ns()
            wait_ns = 0
            for stream, notice in self._newest.items():
                left_ns = self._due_at_ns.get(stream, 0) - at_ns
                if left_ns <= 0:
                    del self._newest[stream]
                    if self._every_ns:
                        self._pace(stream, at_ns)
                    self._taken += 1
                    return notice
                wait_ns = min(wait_ns or left_ns, left_ns)
            self._ready.clear()
            if not wait_ns:
                await self._ready.wait()
                continue
            try:
                async with asyncio.timeout(wait_ns / NS_PER_S):
                    await self._ready.wait()
            except TimeoutError:
                continue

    def _pace(self, stream: str, at_ns: int) -> None:
        if stream not in self._due_at_ns:
            # One more name: those whose time has come are as good as forgotten.
            due = self._due_at_ns.items()
            self._due_at_ns = {name: due_ns for name, due_ns in due if due_ns > at_ns}
        self._due_at_ns[stream] = at_ns + self._every_ns

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Notice:
        try:
            return await self.next()
        except Closed:
            raise StopAsyncIteration from None

    def finish(self) -> None:
        """Take nothing more; the reader gets the events and states that wait, then the end."""
        self._finishing = True
        self._newest.clear()
        self._ready.set()

    def close(self) -> None:
        """Nothing more; wakes the reader. Idempotent."""
        if not self._closed:
            self._closed = True
            self._end(self)
            self._waiting.clear()
            self._newest.clear()
            self._ready.set()

    def statistics(self) -> SubscriptionStatistics:
        return SubscriptionStatistics(
            taken=self._taken,
            dropped=self._dropped,
            replaced=self._replaced,
            waiting=len(self._waiting) + len(self._newest),
        )


class Bulletin:
    """One for an application."""

    def __init__(self) -> None:
        self.run = secrets.token_hex(4)
        """Tells the numbers of this bulletin from those before a restart."""
        self._number = 0
        self._subscriptions: dict[str, dict[Subscription, None]] = {topic: {} for topic in TOPICS}
        self._replay: deque[Notice] = deque(maxlen=REPLAY_AT_MOST)
        # Bound: the streams there are.
        self._states: dict[str, Notice] = {}
        self._posted: Counter[str] = Counter()
        # Of subscriptions that have ended.
        self._dropped = 0
        self._replaced = 0

    @property
    def number(self) -> int:
        """Of the last notice."""
        return self._number

    def wanted(self, topic: str, stream: str) -> bool:
        """Whether anybody would hear of it: what is dear to make is made only then."""
        return any(listener.takes(stream) for listener in self._subscriptions[topic])

    def post(
        self, topic: str, stream: str, message: Mapping[str, Any], names: Sequence[str] = ()
    ) -> None:
        """Tell all who listen; the message belongs to the bulletin from now on."""
        self._number += 1
        self._posted[topic] += 1
        notice = Notice(self._number, topic, stream, message, names)
        if topic == EVENTS:
            self._replay.append(notice)
        elif topic == STATUS:
            if message.get("state") == ENDED:
                self._states.pop(stream, None)
            else:
                self._states[stream] = notice
        for listener in self._subscriptions[topic]:
            listener.put(notice)

    def subscribe(
        self,
        topics: Collection[str],
        stream: str | None = None,
        *,
        allows: Callable[[str], bool] | None = None,
        detections_every_s: float = 0.0,
        after: int | None = None,
    ) -> Subscription:
        """Listen to topics of one stream or, with None, of all that `allows` lets through.

        Who wants `status` first hears how the streams stand. `after` is the number that was seen
        last: kept events behind it come again. `detections_every_s` is the least time between
        two detections of a stream.
        """
        listener = Subscription(self._forget, topics, stream, allows, detections_every_s)
        if STATUS in listener.topics:
            for notice in self._states.values():
                listener.put(notice)
        if after is not None and EVENTS in listener.topics:
            for notice in self._replay:
                if notice.number > after:
                    listener.put(notice)
        for topic in listener.topics:
            self._subscriptions[topic][listener] = None
        return listener

    def close(self) -> None:
        """End all who listen."""
        for listener in self._all():
            listener.close()

    def statistics(self) -> BulletinStatistics:
        counts = [listener.statistics() for listener in self._all()]
        return BulletinStatistics(
            posted={topic: self._posted[topic] for topic in TOPICS},
            subscriptions=len(counts),
            dropped=self._dropped + sum(count.dropped for count in counts),
            replaced=self._replaced + sum(count.replaced for count in counts),
        )

    def _all(self) -> list[Subscription]:
        listeners = (listener for group in self._subscriptions.values() for listener in group)
        return list(dict.fromkeys(listeners))

    def _forget(self, listener: Subscription) -> None:
        for topic in listener.topics:
            self._subscriptions[topic].pop(listener, None)
        count = listener.statistics()
        self._dropped += count.dropped
        self._replaced += count.replaced
