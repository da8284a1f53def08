"""Events are kept and found in SQLite and PostgreSQL alike."""

import asyncio
import dataclasses
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, select, text
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect

from server.analysis.events import Clip, Entry, Event, Search, new_event_id
from server.errors import SettingsError, StoreRefusedError, UnavailableError
from server.history.store.database import make_engine, parse_url, upgrade
from server.history.store.schema import EVENTS, METADATA
from server.history.store.store import ROW_BYTES, Store, _filtered

pytestmark = pytest.mark.service

LITERALS = {"literal_binds": True}
JPEG = b"\xff\xd8 not really"


@asynccontextmanager
async def opened(url: str, node: str = "here:8080") -> AsyncIterator[Store]:
    store = Store(parse_url(url), node)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def an_event(at: int = 1_800_000_000_000, **changes: Any) -> Event:
    event = Event(
        id=new_event_id(at),
        stream="yard",
        kind="enter",
        class_name="person",
        track_id=3,
        zone="room",
        started_unix_ms=at,
        ended_unix_ms=None,
        score=0.5,
        box=(0.1, 0.2, 0.3, 0.4),
    )
    return dataclasses.replace(event, **changes)


async def ids(store: Store, **wish: Any) -> list[str]:
    return [found.event.id for found in await store.search(Search(**wish))]


async def test_what_is_written_is_found_as_it_was(database_url: str) -> None:
    event = an_event(class_name="<img src=x onerror=alert(1)>'); DROP TABLE events;--\N{SNOWMAN}")
    async with opened(database_url) as store:
        await store.write([Entry(event, JPEG), Entry(an_event(1, box=None, track_id=None))])
    async with opened(database_url, "another:1") as store:
        found = await store.get(event.id)
        assert found is not None
        assert found.event == event
        assert found.has_snapshot
        assert await store.snapshot(event.id) == JPEG
        assert await store.get("0" * 32) is None
        assert await store.snapshot("0" * 32) is None


async def test_an_end_changes_the_event_and_keeps_its_picture(database_url: str) -> None:
    event = an_event()
    ended = dataclasses.replace(event, ended_unix_ms=event.started_unix_ms + 500, score=0.9)
    async with opened(database_url) as store:
        await store.write([Entry(event, JPEG), Entry(ended)])
        # A commit whose answer got lost is tried again.
        await store.write([Entry(event, JPEG), Entry(ended)])
        found = await store.get(event.id)
        assert found is not None
        assert found.event == ended
        assert await store.snapshot(event.id) == JPEG
        await store.write([Entry(ended, b"better")])
        assert await store.snapshot(event.id) == b"better"
        assert len(await ids(store)) == 1


async def test_a_search_reads_one_index_and_sorts_nothing(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/events.db") as store:
        for wish in (
            Search(),
            Search(stream="yard", class_name="car", zone="gate"),
            Search(class_name="car", kind="cross", acknowledged=False),
            Search(patterns=("front-*",), since_unix_ms=5, after=(7, "f" * 32)),
        ):
            inner = _filtered(select(EVENTS.c.id), wish)
            statement = inner.compile(dialect=sqlite_dialect(), compile_kwargs=LITERALS)
            async with store._engine.connect() as connection:
                plan = await connection.execute(text(f"EXPLAIN QUERY PLAN {statement}"))
                steps = [row[3] for row in plan]
            assert len(steps) == 1, steps
            assert "USING COVERING INDEX events_by" in steps[0]


async def test_search_by_everything_and_by_pages(database_url: str) -> None:
    events = [
        an_event(
            # Two begin at the same time.
            1000 + number // 2,
            stream=("yard", "Yard-2", "hall")[number % 3],
            class_name=("person", "car")[number % 2],
            zone=("room", "gate", "")[number % 3],
            kind=("enter", "cross")[number % 2],
        )
        for number in range(60)
    ]
    newest_first = sorted(events, key=lambda e: (e.started_unix_ms, e.id), reverse=True)
    async with opened(database_url) as store:
        await store.write([Entry(event) for event in events])
        await store.acknowledge(events[7].id, "me", 5)

        def expected(keep: Any) -> list[str]:
            return [event.id for event in newest_first if keep(event)]

        every: dict[str, Any] = {"limit": 500}
        assert await ids(store, **every) == expected(lambda e: True)
        assert await ids(store, stream="yard", **every) == expected(lambda e: e.stream == "yard")
        assert await ids(store, class_name="car", zone="gate", **every) == expected(
            lambda e: e.class_name == "car" and e.zone == "gate"
        )
        assert await ids(store, kind="cross", since_unix_ms=1005, until_unix_ms=1009) == expected(
            lambda e: e.kind == "cross" and 1005 <= e.started_unix_ms < 1009
        )
        assert await ids(store, acknowledged=True) == [events[7].id]
        assert len(await ids(store, acknowledged=False, **every)) == 59
        # Patterns take what they name, in upper and lower case as it is written.
        assert await ids(store, patterns=("yar*",), **every) == expected(
            lambda e: e.stream == "yard"
        )
        assert await ids(store, patterns=("Yard-2", "hall"), **every) == expected(
            lambda e: e.stream != "yard"
        )
        assert await ids(store, patterns=("%", "y_rd", "y%*")) == []
        assert await ids(store, patterns=("hall",), stream="yard") == []

        pages: list[str] = []
        after = None
        while page := await store.search(Search(after=after, limit=7)):
            pages += [found.event.id for found in page]
            after = page[-1].event.started_unix_ms, page[-1].event.id
        assert pages == expected(lambda e: True)


async def test_the_first_who_acknowledges_stands(database_url: str) -> None:
    event = an_event()
    async with opened(database_url) as store:
        await store.write([Entry(event)])
        first = await store.acknowledge(event.id, "anna", 10)
        second = await store.acknowledge(event.id, "bert", 20)
        assert first == second
        assert first is not None
        assert (first.acknowledged_by, first.acknowledged_unix_ms) == ("anna", 10)
        assert await store.acknowledge("0" * 32, "anna", 10) is None
        # Its end, written later, does not undo it.
        await store.write([Entry(dataclasses.replace(event, ended_unix_ms=event.started_unix_ms))])
        found = await store.get(event.id)
        assert found is not None
        assert found.acknowledged_by == "anna"


async def test_what_a_crash_left_open_is_closed_by_its_own_server(database_url: str) -> None:
    mine, other = an_event(), an_event()
    async with opened(database_url, "here:1") as store:
        await store.write([Entry(mine)])
    async with opened(database_url, "there:1") as store:
        await store.write([Entry(other)])
    async with opened(database_url, "here:1") as store:
        found, left = await store.get(mine.id), await store.get(other.id)
        assert found is not None
        assert left is not None
        assert found.interrupted
        assert found.event.ended_unix_ms == mine.started_unix_ms
        assert (left.interrupted, left.event.ended_unix_ms) == (False, None)


async def test_old_ones_and_what_has_no_room_are_forgotten(database_url: str) -> None:
    events = [an_event(1000 + number) for number in range(700)]
    async with opened(database_url) as store:
        await store.write([Entry(event, bytes(1000)) for event in events])
        assert await store.event_bytes() == 700 * (1000 + ROW_BYTES)
        assert await store.forget_events(1010, 10**9) == 10
        gone = await store.forget_events(0, 300 * (1000 + ROW_BYTES))
        assert gone >= 390
        left = await ids(store, limit=500)
        assert 0 < len(left) <= 300
        assert left[0] == events[-1].id
        assert await store.snapshot(events[0].id) is None
        assert await store.snapshot(events[-1].id) is not None
        assert await store.forget_events(10**15, 10**9) == len(left)
        assert await store.event_bytes() == 0


async def test_clips_are_listed_and_forgotten(database_url: str) -> None:
    clips = [
        Clip(new_event_id(n), ("yard", "hall")[n % 2], n, 2000, 100, (640, 480), None, JPEG)
        for n in range(10)
    ]
    async with opened(database_url) as store:
        for clip in clips:
            await store.write_clip(clip)
            await store.write_clip(clip)
        assert await store.clip_bytes() == 1000
        listed = await store.clips("yard", since_unix_ms=2, until_unix_ms=8, limit=2)
        assert [clip.id for clip in listed] == [clips[6].id, clips[4].id]
        further = await store.clips("yard", after=(4, clips[4].id))
        assert [clip.id for clip in further] == [clips[2].id, clips[0].id]
        found = await store.clip(clips[0].id)
        assert found == clips[0]
        assert [clip.id for clip in await store.oldest_clips(2)] == [clips[0].id, clips[1].id]
        await store.forget_clips([clips[0].id])
        assert await store.clip(clips[0].id) is None


async def test_many_at_once_are_one_after_the_other(database_url: str) -> None:
    async with opened(database_url) as store:
        batches = [[Entry(an_event(n * 100 + m), JPEG) for m in range(10)] for n in range(8)]
        reads = [store.search(Search()) for _ in range(20)]
        await asyncio.gather(*(store.write(batch) for batch in batches), *reads)
        assert len(await ids(store, limit=500)) == 80


async def test_two_servers_that_start_at_once_both_come_up(database_url: str) -> None:
    stores = [Store(parse_url(database_url), f"here:{number}") for number in range(3)]
    try:
        await asyncio.gather(*(store.open() for store in stores))
        await stores[0].write([Entry(an_event())])
        assert len(await ids(stores[2])) == 1
    finally:
        for store in stores:
            await store.close()


async def test_the_steps_lead_to_the_tables_of_the_schema(database_url: str) -> None:
    engine = make_engine(parse_url(database_url))

    def differences(connection: Connection) -> list[Any]:
        found: list[Any] = compare_metadata(MigrationContext.configure(connection), METADATA)
        return found

    try:
        await upgrade(engine)
        await upgrade(engine)
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await engine.dispose()


async def test_a_database_of_a_newer_server_is_refused(database_url: str) -> None:
    async with opened(database_url):
        pass
    engine = make_engine(parse_url(database_url))
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await engine.dispose()
    with pytest.raises(SettingsError, match="newer Sightline"):
        async with opened(database_url):
            pass


async def test_what_the_database_will_never_take_is_refused_as_such(database_url: str) -> None:
    async with opened(database_url) as store:
        broken = an_event(stream=None)
        with pytest.raises(StoreRefusedError):
            await store.write([Entry(an_event()), Entry(broken)])
        assert await ids(store) == []


async def test_a_server_that_is_not_there_is_away_and_its_password_is_not_told() -> None:
    store = Store(parse_url("postgresql://sightline:secret@127.0.0.1:1/none"), "here:1")
    try:
        with pytest.raises(UnavailableError, match="away") as caught:
            await store.open()
        assert "secret" not in str(caught.value)
        assert "secret" not in store.place
    finally:
        await store.close()


async def test_the_file_is_for_its_owner_alone_and_waits_for_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "state" / "events.db"
    async with opened(f"sqlite:///{file}") as store:
        await store.write([Entry(an_event(), JPEG)])
        assert {part.stat().st_mode & 0o077 for part in file.parent.iterdir()} == {0}
        async with store._engine.connect() as connection:
            for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("auto_vacuum", 2)):
                assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar() == value


async def test_a_file_that_is_no_database_is_away(tmp_path: Path) -> None:
    file = tmp_path / "events.db"
    file.write_bytes(b"this is no database, however long it is" * 100)
    with pytest.raises(UnavailableError):
        async with opened(f"sqlite:///{file}"):
            pass


async def test_a_locked_file_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "events.db"
    async with opened(f"sqlite:///{file}") as store:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(store.write([Entry(an_event())]))
        # Reading goes on beside a writer.
        assert await ids(store) == []
        other.execute("COMMIT")
        other.close()
        await writing
        assert len(await ids(store)) == 1


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("mysql://x/y", "not sqlite or postgresql"),
        ("sqlite://", "wants a file"),
        ("events.db", "not auto, off, or a URL"),
        ("", "not auto, off, or a URL"),
    ],
)
def test_other_databases_are_refused(url: str, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        parse_url(url)
