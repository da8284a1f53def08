"""An event is told only when it is on the disk, and what is lost is counted."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.analysis.events import Entry, Search
from server.errors import StoreRefusedError, UnavailableError
from server.history import journal as journal_module
from server.history.journal import ENTRIES_AT_MOST, PICTURES_AT_MOST, EventStore, Journal
from server.history.store.database import parse_url
from server.history.store.store import Store
from server.settings import StoreSettings
from tests.analysis.databases import Postgres
from tests.analysis.happenings import begins, ends
from tests.serving import DEADLINE_S, until

pytestmark = pytest.mark.service

ROOT = Path(__file__).resolve().parents[2]
Message = Mapping[str, Any]


class FakeStore:
    """Writes when it may, and fails when it is told to."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.commits: list[int] = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.failure: Exception | None = None
        self.refuses: set[str] = set()
        self.opened = 0
        self.tries = 0
        self.closed = 0

    async def open(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.opened += 1

    async def write(self, entries: Sequence[Entry]) -> None:
        await self.may_write.wait()
        self.tries += 1
        if self.failure is not None:
            raise self.failure
        if any(entry.event.zone in self.refuses for entry in entries):
            raise StoreRefusedError("store: refused")
        self.commits.append(len(entries))
        self.entries += entries

    async def forget_events(self, before_unix_ms: int, bytes_at_most: int) -> int:
        return 0

    async def close(self) -> None:
        self.closed += 1


@asynccontextmanager
async def writing(
    make_store: Callable[[], EventStore] | None, *, eager: bool = False
) -> AsyncIterator[tuple[Journal, list[Message]]]:
    told: list[Message] = []
    journal = Journal(
        StoreSettings(), make_store, lambda _, message: told.append(message), eager=eager
    )
    journal.start()
    try:
        yield journal, told
    finally:
        await journal.close(2.0)


async def test_what_happens_is_written_with_its_picture_and_then_told() -> None:
    store = FakeStore()
    async with writing(lambda: store) as (journal, told):
        assert (store.opened, journal.statistics().state) == (0, "idle")
        store.may_write.clear()
        happening = begins()
        journal.happened(happening)
        await until(lambda: journal.statistics().waiting == 1)
        assert told == []
        store.may_write.set()
        await until(lambda: len(told) == 1)
        [entry] = store.entries
        assert entry.event == happening.event
        assert entry.jpeg is not None
        assert entry.jpeg.startswith(b"\xff\xd8")
        assert told[0] == happening.event.to_json()
        statistics = journal.statistics()
        assert (statistics.state, statistics.written, statistics.waiting) == ("ready", 1, 0)
        assert statistics.write_ms.count == 1
    assert store.closed == 1


async def test_what_comes_during_a_commit_is_written_together_and_in_order() -> None:
    store = FakeStore()
    async with writing(lambda: store) as (journal, told):
        store.may_write.clear()
        happenings = [begins(pictured=False) for _ in range(100)]
        happenings += [ends(happening) for happening in happenings]
        for happening in happenings:
            journal.happened(happening)
        await until(lambda: journal.statistics().waiting == 200)
        store.may_write.set()
        await until(lambda: len(told) == 200)
        assert [entry.event for entry in store.entries] == [h.event for h in happenings]
        assert len(store.commits) < 10
        assert [message["ended_unix_ms"] is None for message in told] == [True] * 100 + [
            False
        ] * 100


async def test_a_database_that_is_away_is_waited_for_and_told_nothing_meanwhile() -> None:
    store = FakeStore()
    async with writing(lambda: store) as (journal, told):
        journal.happened(begins())
        await until(lambda: len(told) == 1)
        store.failure = UnavailableError("store: the database is away: gone", 5)
        for _ in range(10):
            journal.happened(begins())
        await until(lambda: journal.statistics().state == "away")
        assert len(told) == 1
        assert "gone" in journal.statistics().last_error
        store.failure = None
        await until(lambda: len(told) == 11)
        assert journal.statistics().state == "ready"
        assert journal.statistics().lost == 0


async def test_a_database_that_takes_nothing_is_away_until_it_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A full disk: it can be opened, and refuses each write."""
    caplog.set_level("INFO", "server.history.journal")
    store = FakeStore()
    async with writing(lambda: store) as (journal, told):
        journal.happened(begins())
        await until(lambda: len(told) == 1)
        store.failure = UnavailableError("store: the database is away: disk is full", 5)
        journal.happened(begins())
        await until(lambda: store.tries >= 4)
        assert journal.statistics().state == "away"
        assert [record.message[:11] for record in caplog.records] == ["Events wait"]
        store.failure = None
        await until(lambda: len(told) == 2)
        await until(lambda: journal.statistics().state == "ready")
    assert [record.message for record in caplog.records][1:] == ["Events are written again"]


async def test_a_database_that_cannot_be_opened_is_tried_again() -> None:
    store = FakeStore()
    store.failure = UnavailableError("store: the database is away: gone", 5)
    async with writing(lambda: store, eager=True) as (journal, told):
        journal.happened(begins())
        await until(lambda: journal.statistics().state == "away")
        assert journal.store is None
        assert journal.unreached
        store.failure = None
        await until(lambda: len(told) == 1)
        assert not journal.unreached


async def test_a_database_that_is_not_open_yet_is_not_an_empty_one() -> None:
    async with writing(FakeStore, eager=True) as (journal, _):
        # Nobody has had a turn since the start.
        assert "opened" in journal.unreached
        await until(lambda: journal.store is not None)
        assert not journal.unreached
    async with writing(FakeStore) as (journal, _):
        assert not journal.unreached


async def test_what_is_too_much_is_lost_and_counted() -> None:
    store = FakeStore()
    store.may_write.clear()
    async with writing(lambda: store) as (journal, told):
        for _ in range(ENTRIES_AT_MOST + 30):
            journal.happened(begins(pictured=False))
        await until(lambda: journal.statistics().lost >= 30)
        assert journal.statistics().waiting <= ENTRIES_AT_MOST
        store.may_write.set()
        await until(lambda: journal.statistics().waiting == 0)
        statistics = journal.statistics()
        assert statistics.written + statistics.lost == ENTRIES_AT_MOST + 30
        assert len(told) == statistics.written


async def test_pictures_that_come_too_fast_are_left_out_and_events_are_not() -> None:
    store = FakeStore()
    async with writing(lambda: store) as (journal, told):
        # The pictures' thread is held up by this one.
        release = asyncio.Event()
        loop = asyncio.get_running_loop()
        held = loop.create_future()
        journal._pictures.submit(
            lambda: asyncio.run_coroutine_threadsafe(_hold(held, release), loop).result(20)
        )
        await held
        for _ in range(PICTURES_AT_MOST + 5):
            journal.happened(begins())
        release.set()
        await until(lambda: len(told) == PICTURES_AT_MOST + 5)
        assert journal.statistics().pictures_lost == 5
        without = [message for message in told if message["snapshot_url"] is None]
        assert len(without) == 5


async def _hold(held: asyncio.Future[None], release: asyncio.Event) -> None:
    held.set_result(None)
    await release.wait()


async def test_pictures_have_a_budget_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "PICTURE_BYTES_AT_MOST", 100)
    store = FakeStore()
    async with writing(lambda: store) as (journal, told):
        journal.happened(begins())
        await until(lambda: len(told) == 1)
        assert store.entries[0].jpeg is None
        assert journal.statistics().pictures_lost == 1


async def test_one_that_the_database_will_never_take_does_not_hold_up_the_others() -> None:
    store = FakeStore()
    store.refuses.add("bad")
    async with writing(lambda: store) as (journal, told):
        store.may_write.clear()
        for zone in ("a", "bad", "b"):
            journal.happened(begins(zone=zone))
        await until(lambda: journal.statistics().waiting == 3)
        store.may_write.set()
        await until(lambda: len(told) == 2)
        assert [message["zone"] for message in told] == ["a", "b"]
        assert journal.statistics().lost == 1


async def test_what_waits_is_written_before_the_end() -> None:
    store = FakeStore()
    async with writing(lambda: store) as (journal, told):
        happenings = [begins() for _ in range(5)]
        for happening in happenings:
            journal.happened(happening)
    assert len(store.entries) == len(told) == 5
    journal.happened(begins())
    assert len(store.entries) == 5


async def test_a_store_that_hangs_does_not_hold_up_the_end() -> None:
    store = FakeStore()
    store.may_write.clear()
    journal = Journal(StoreSettings(), lambda: store, lambda *_: None, eager=True)
    journal.start()
    journal.happened(begins())
    await until(lambda: journal.statistics().waiting == 1)
    async with asyncio.timeout(DEADLINE_S):
        await journal.close(0.1)
    assert journal.statistics().lost == 1


async def test_without_a_store_events_are_told_at_once() -> None:
    async with writing(None) as (journal, told):
        journal.happened(begins())
        await until(lambda: len(told) == 1)
        assert told[0]["snapshot_url"] is None
        assert journal.statistics().state == "off"


async def test_a_real_database_that_goes_away_for_a_while(postgres: Postgres) -> None:
    url = parse_url(await postgres.database())
    async with writing(lambda: Store(url, "here:1"), eager=True) as (journal, told):
        journal.happened(begins())
        await until(lambda: len(told) == 1)
        await asyncio.to_thread(postgres.stop)
        try:
            for _ in range(20):
                journal.happened(begins())
            await until(lambda: journal.statistics().state == "away")
            assert len(told) == 1
        finally:
            await asyncio.to_thread(postgres.start)
        await until(lambda: len(told) == 21)
        assert journal.statistics().lost == 0
        assert isinstance(journal.store, Store)
        assert len(await journal.store.search(Search())) == 21


async def test_nothing_that_was_told_or_acknowledged_is_lost_at_kill_9(database_url: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.analysis.killed",
        database_url,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    lines: list[list[str]] = []
    try:
        async with asyncio.timeout(3 * DEADLINE_S):
            while sum(words[0] == "acknowledged" for words in lines) < 60:
                lines.append((await process.stdout.readline()).decode().split())
        # In the middle of whatever it does.
        os.kill(process.pid, signal.SIGKILL)
        rest = await process.stdout.read()
        lines += [line.split() for line in rest.decode().splitlines() if len(line.split()) == 2]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    store = Store(parse_url(database_url), "killed:1")
    try:
        await store.open()
        for word, event_id in lines:
            found = await store.get(event_id)
            assert found is not None, f"{word} and lost"
            assert word == "told" or found.acknowledged_by == "me"
            # Nobody will ever end it.
            assert found.interrupted
            if word == "told":
                assert await store.snapshot(event_id)
    finally:
        await store.close()
