"""The bulletin: newest detections, events in order, what was missed, nothing without listeners."""

import asyncio
import itertools

import pytest

from server.outlets.bulletin import (
    DETECTIONS,
    ENDED,
    EVENTS,
    LIVE,
    REPLAY_AT_MOST,
    STATUS,
    WAITING_AT_MOST,
    Bulletin,
    Closed,
    Notice,
    Subscription,
)

pytestmark = pytest.mark.unit

DEADLINE_S = 20.0


async def taken(listener: Subscription, count: int) -> list[dict[str, object]]:
    """The next messages."""
    async with asyncio.timeout(DEADLINE_S):
        return [dict((await listener.next()).message) for _ in range(count)]


async def nothing_waits(listener: Subscription) -> bool:
    return listener.statistics().waiting == 0


async def test_late_listener_gets_only_the_newest_detections_of_each_stream() -> None:
    bulletin = Bulletin()
    listener = bulletin.subscribe([DETECTIONS])
    for number in range(5):
        bulletin.post(DETECTIONS, "porch", {"seq": number})
        bulletin.post(DETECTIONS, "yard", {"seq": 10 + number})
    assert await taken(listener, 2) == [{"seq": 4}, {"seq": 14}]
    assert await nothing_waits(listener)
    assert listener.statistics().replaced == 8


async def test_a_pace_is_remembered_of_streams_that_were_told_just_now_alone() -> None:
    listener = Bulletin().subscribe([DETECTIONS], detections_every_s=1e-9)
    for number in range(100):
        listener.put(Notice(number, DETECTIONS, f"visitor-{number}", {}))
        await taken(listener, 1)
    assert len(listener._due_at_ns) == 1


async def test_a_busy_stream_does_not_starve_another() -> None:
    bulletin = Bulletin()
    listener = bulletin.subscribe([DETECTIONS])
    bulletin.post(DETECTIONS, "porch", {"seq": 0})
    bulletin.post(DETECTIONS, "yard", {"seq": 0})
    streams = []
    for number in range(4):
        async with asyncio.timeout(DEADLINE_S):
            streams.append((await listener.next()).stream)
        bulletin.post(DETECTIONS, "porch", {"seq": number})
        bulletin.post(DETECTIONS, "yard", {"seq": number})
    assert streams == ["porch", "yard", "porch", "yard"]


async def test_events_wait_in_order_and_the_oldest_fall_out() -> None:
    bulletin = Bulletin()
    listener = bulletin.subscribe([EVENTS])
    for number in range(WAITING_AT_MOST + 3):
        bulletin.post(EVENTS, "porch", {"id": number})
    assert await taken(listener, 2) == [{"id": 3}, {"id": 4}]
    assert listener.statistics().dropped == 3
    assert bulletin.statistics().dropped == 3


async def test_who_comes_back_hears_the_events_in_between_and_no_others() -> None:
    bulletin = Bulletin()
    for number in range(1, 5):
        bulletin.post(EVENTS, "porch" if number % 2 else "yard", {"id": number})
    listener = bulletin.subscribe([EVENTS], "porch", after=1)
    assert await taken(listener, 1) == [{"id": 3}]
    assert await nothing_waits(listener)


async def test_kept_events_are_bounded() -> None:
    bulletin = Bulletin()
    for number in range(REPLAY_AT_MOST + 10):
        bulletin.post(EVENTS, "porch", {"id": number})
    listener = bulletin.subscribe([EVENTS], after=0)
    statistics = listener.statistics()
    assert statistics.waiting == WAITING_AT_MOST
    assert statistics.dropped == REPLAY_AT_MOST - WAITING_AT_MOST


async def test_new_listener_hears_how_the_streams_stand() -> None:
    bulletin = Bulletin()
    bulletin.post(STATUS, "porch", {"stream": "porch", "state": LIVE})
    bulletin.post(STATUS, "yard", {"stream": "yard", "state": LIVE})
    bulletin.post(STATUS, "yard", {"stream": "yard", "state": ENDED})
    listener = bulletin.subscribe([STATUS])
    assert await taken(listener, 1) == [{"stream": "porch", "state": LIVE}]
    assert await nothing_waits(listener)


async def test_listener_hears_nothing_of_streams_that_are_not_for_it() -> None:
    bulletin = Bulletin()
    one = bulletin.subscribe([EVENTS], "porch")
    some = bulletin.subscribe([EVENTS], allows=lambda stream: stream.startswith("front"))
    assert bulletin.wanted(EVENTS, "porch")
    assert not bulletin.wanted(EVENTS, "yard")
    assert not bulletin.wanted(DETECTIONS, "porch")
    for stream in ("yard", "front-door", "porch"):
        bulletin.post(EVENTS, stream, {"stream": stream})
    assert await taken(one, 1) == [{"stream": "porch"}]
    assert await taken(some, 1) == [{"stream": "front-door"}]
    assert await nothing_waits(one)
    assert await nothing_waits(some)


async def test_detections_keep_the_distance_and_the_last_one_comes_through() -> None:
    bulletin = Bulletin()
    listener = bulletin.subscribe([DETECTIONS], detections_every_s=0.05)
    loop = asyncio.get_running_loop()
    bulletin.post(DETECTIONS, "porch", {"seq": 0})
    began = loop.time()
    assert await taken(listener, 1) == [{"seq": 0}]
    for number in itertools.count(1):
        bulletin.post(DETECTIONS, "porch", {"seq": number})
        if number == 5:
            break
    assert await taken(listener, 1) == [{"seq": 5}]
    assert loop.time() - began >= 0.049


async def test_a_limit_on_detections_holds_no_event_up() -> None:
    bulletin = Bulletin()
    listener = bulletin.subscribe([DETECTIONS, EVENTS], detections_every_s=3600)
    bulletin.post(DETECTIONS, "porch", {"seq": 0})
    await taken(listener, 1)
    bulletin.post(DETECTIONS, "porch", {"seq": 1})
    waiting = asyncio.create_task(taken(listener, 1))
    await asyncio.sleep(0)
    bulletin.post(EVENTS, "porch", {"id": 1})
    assert await waiting == [{"id": 1}]


async def test_closing_wakes_the_reader_and_forgets_it() -> None:
    bulletin = Bulletin()
    listener = bulletin.subscribe([EVENTS, STATUS])

    async def read_all() -> int:
        return len([notice async for notice in listener])

    reader = asyncio.create_task(read_all())
    await asyncio.sleep(0)
    bulletin.close()
    listener.close()
    async with asyncio.timeout(DEADLINE_S):
        assert await reader == 0
    assert bulletin.statistics().subscriptions == 0
    with pytest.raises(Closed):
        await listener.next()
    bulletin.post(EVENTS, "porch", {"id": 1})
    assert listener.statistics().waiting == 0


async def test_text_is_made_once_for_all() -> None:
    bulletin = Bulletin()
    listeners = [bulletin.subscribe([EVENTS]) for _ in range(2)]
    bulletin.post(EVENTS, "porch", {"id": 1})
    async with asyncio.timeout(DEADLINE_S):
        first, second = [await listener.next() for listener in listeners]
    assert first.text == '{"id":1}'
    assert first.text is second.text


async def test_finishing_leaves_what_waits_and_takes_nothing_more() -> None:
    bulletin = Bulletin()
    listener = bulletin.subscribe([EVENTS, DETECTIONS])
    bulletin.post(EVENTS, "porch", {"id": 1})
    bulletin.post(DETECTIONS, "porch", {"seq": 1})
    listener.finish()
    bulletin.post(EVENTS, "porch", {"id": 2})
    async with asyncio.timeout(DEADLINE_S):
        assert [dict(notice.message) async for notice in listener] == [{"id": 1}]
