import asyncio

import pytest

from server.latest import Latest, LatestClosed

pytestmark = pytest.mark.unit


async def test_the_reader_gets_the_newest_value_once() -> None:
    latest: Latest[int] = Latest()
    latest.set(1)
    latest.set(2)
    assert await latest.wait_next() == 2
    waiting = asyncio.create_task(latest.wait_next())
    await asyncio.sleep(0)
    assert not waiting.done()
    latest.set(3)
    assert await waiting == 3
    assert latest.statistics().dropped_replaced == 1
    assert latest.statistics().taken == 2


async def test_close_ends_a_waiting_reader_and_is_idempotent() -> None:
    latest: Latest[int] = Latest()
    waiting = asyncio.create_task(latest.wait_next())
    await asyncio.sleep(0)
    latest.close()
    latest.close()
    with pytest.raises(LatestClosed):
        await waiting
    latest.set(1)
    with pytest.raises(LatestClosed):
        await latest.wait_next()


async def test_a_cancelled_reader_loses_nothing() -> None:
    latest: Latest[int] = Latest()
    waiting = asyncio.create_task(latest.wait_next())
    await asyncio.sleep(0)
    waiting.cancel()
    latest.set(7)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await latest.wait_next() == 7
