"""Events and clips written, found and forgotten. On the loop; the database works elsewhere.

Whatever the database throws leaves here as one of two errors: UnavailableError, it is away, full
or too slow and may be tried again; StoreRefusedError, it will never take this.

Writing the same event twice changes nothing, so that a commit whose answer got lost can be
tried again.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import URL, Select, Table, and_, delete, func, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from server.analysis.events import Clip, Entry, Event, Search, StoredEvent
from server.errors import StoreRefusedError, UnavailableError
from server.history.store.database import make_engine, sqlite_file, upgrade
from server.history.store.schema import CLIPS, EVENTS, SNAPSHOTS

# What a row costs beside its picture, for retention by size.
ROW_BYTES = 700
DEADLINE_S = 20.0
RETRY_S = 5
FORGET_AT_ONCE = 500


class Store:
    """`open` it once."""

    def __init__(self, url: URL, node: str) -> None:
        self._engine: AsyncEngine = make_engine(url)
        self._node = node

    async def open(self) -> None:
        """Bring the database up to date, and close what a crash of this server left open."""
        async with _translated():
            await upgrade(self._engine)
        async with self._begin() as connection:
            await connection.execute(
                update(EVENTS)
                .where(EVENTS.c.ended_unix_ms.is_(None), EVENTS.c.node == self._node)
                .values(ended_unix_ms=EVENTS.c.started_unix_ms, interrupted=True)
            )

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction; committed when the block ends."""
        async with _translated(), self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[AsyncConnection]:
        async with _translated(), self._engine.connect() as connection:
            yield connection

    # --- events ---

    async def write(self, entries: Sequence[Entry]) -> None:
        """All of them in one commit, or none. On the disk when it returns."""
        # One row an event, so that the order of statements does not matter.
        latest: dict[str, Entry] = {}
        for entry in entries:
            before = latest.get(entry.event.id)
            if before is not None and entry.jpeg is None:
                entry = replace(entry, jpeg=before.jpeg)
            latest[entry.event.id] = entry
        rows = [(self._row(entry), entry.jpeg) for entry in latest.values()]
        pictured = [row for row, jpeg in rows if jpeg is not None]
        plain = [row for row, jpeg in rows if jpeg is None]
        pictures = [{"event_id": row["id"], "jpeg": jpeg} for row, jpeg in rows if jpeg is not None]
        changes = ("ended_unix_ms", "score", "box")
        async with self._begin() as connection:
            await self._upsert(connection, EVENTS, "id", (*changes, "snapshot_bytes"), pictured)
            await self._upsert(connection, EVENTS, "id", changes, plain)
            await self._upsert(connection, SNAPSHOTS, "event_id", ("jpeg",), pictures)

    async def _upsert(
        self,
        connection: AsyncConnection,
        table: Table,
        key: str,
        changes: Sequence[str],
        rows: list[dict[str, Any]],
    ) -> None:
        if rows:
            insert = self._insert(table)
            excluded = {name: insert.excluded[name] for name in changes}
            upsert = insert.on_conflict_do_update(index_elements=[key], set_=excluded)
            await connection.execute(upsert, rows)

    def _insert(self, table: Any) -> Any:
        backend = self._engine.dialect.name
        return sqlite.insert(table) if backend == "sqlite" else postgresql.insert(table)

    def _row(self, entry: Entry) -> dict[str, Any]:
        event = entry.event
        return {
            "id": event.id,
            "node": self._node,
            "stream": event.stream,
            "kind": event.kind,
            "class_name": _clean(event.class_name),
            "track_id": event.track_id,
            "zone": event.zone,
            "direction": event.direction,
            "started_unix_ms": event.started_unix_ms,
            "ended_unix_ms": event.ended_unix_ms,
            "interrupted": False,
            "score": event.score,
            "box": None
            if event.box is None
            else json.dumps([round(side, 4) for side in event.box]),
            "snapshot_bytes": len(entry.jpeg or b""),
        }

    async def search(self, wish: Search) -> list[StoredEvent]:
        """Newest first, at most `limit`."""
        # The inner search reads one index and nothing else.
        inner = _filtered(select(EVENTS.c.id), wish).subquery()
        found = (
            select(EVENTS)
            .where(EVENTS.c.id.in_(select(inner.c.id)))
            .order_by(EVENTS.c.started_unix_ms.desc(), EVENTS.c.id.desc())
        )
        async with self._connect() as connection:
            return [_stored(row) for row in (await connection.execute(found)).mappings()]

    async def get(self, event_id: str) -> StoredEvent | None:
        async with self._connect() as connection:
            found = await connection.execute(select(EVENTS).where(EVENTS.c.id == event_id))
            row = found.mappings().first()
            return None if row is None else _stored(row)

    async def snapshot(self, event_id: str) -> bytes | None:
        async with self._connect() as connection:
            jpeg = select(SNAPSHOTS.c.jpeg).where(SNAPSHOTS.c.event_id == event_id)
            found: bytes | None = (await connection.execute(jpeg)).scalar()
            return found

    async def acknowledge(self, event_id: str, by: str, at_unix_ms: int) -> StoredEvent | None:
        """Somebody has seen it; the first stands. On the disk when it returns."""
        async with self._begin() as connection:
            await connection.execute(
                update(EVENTS)
                .where(EVENTS.c.id == event_id, EVENTS.c.acknowledged_unix_ms.is_(None))
                .values(acknowledged_unix_ms=at_unix_ms, acknowledged_by=_clean(by))
            )
        return await self.get(event_id)

    async def forget_events(self, before_unix_ms: int, bytes_at_most: int) -> int:
        """Delete what is older, then the oldest until the rest fits; how many went."""
        gone = 0
        old = select(EVENTS.c.id).where(EVENTS.c.started_unix_ms < before_unix_ms)
        while count := await self._delete(old):
            gone += count
        oldest = select(EVENTS.c.id).order_by(EVENTS.c.started_unix_ms, EVENTS.c.id)
        while await self.event_bytes() > bytes_at_most:
            count = await self._delete(oldest)
            gone += count
            if not count:
                break
        if gone and self._engine.dialect.name == "sqlite":
            async with self._connect() as connection:
                await connection.execute(text("PRAGMA incremental_vacuum(4000)"))
        return gone

    async def _delete(self, chosen: Select[tuple[str]]) -> int:
        async with self._begin() as connection:
            rows = await connection.execute(chosen.limit(FORGET_AT_ONCE))
            identities = [row[0] for row in rows]
            if identities:
                # SQLite may have been opened by others without foreign keys.
                await connection.execute(
                    delete(SNAPSHOTS).where(SNAPSHOTS.c.event_id.in_(identities))
                )
                await connection.execute(delete(EVENTS).where(EVENTS.c.id.in_(identities)))
        return len(identities)

    async def event_bytes(self) -> int:
        """About how much room events take."""
        total = select(
            func.count() * ROW_BYTES + func.coalesce(func.sum(EVENTS.c.snapshot_bytes), 0)
        ).select_from(EVENTS)
        async with self._connect() as connection:
            return int((await connection.execute(total)).scalar() or 0)

    # --- clips ---

    async def write_clip(self, clip: Clip) -> None:
        """On the disk when it returns."""
        values = {
            "id": clip.id,
            "node": self._node,
            "stream": clip.stream,
            "event_id": clip.event_id,
            "started_unix_ms": clip.started_unix_ms,
            "duration_ms": clip.duration_ms,
            "bytes": clip.size_bytes,
            "width": clip.size_wh[0],
            "height": clip.size_wh[1],
            "thumbnail": clip.thumbnail,
        }
        async with self._begin() as connection:
            insert = self._insert(CLIPS).values(values)
            await connection.execute(insert.on_conflict_do_nothing(index_elements=["id"]))

    async def clips(
        self,
        stream: str | None,
        since_unix_ms: int | None = None,
        until_unix_ms: int | None = None,
        after: tuple[int, str] | None = None,
        limit: int = 50,
    ) -> list[Clip]:
        """Newest first, without their thumbnails."""
        columns = [column for column in CLIPS.c if column.name != "thumbnail"]
        found = select(*columns).where(CLIPS.c.node == self._node)
        if stream is not None:
            found = found.where(CLIPS.c.stream == stream)
        if since_unix_ms is not None:
            found = found.where(CLIPS.c.started_unix_ms >= since_unix_ms)
        if until_unix_ms is not None:
            found = found.where(CLIPS.c.started_unix_ms < until_unix_ms)
        if after is not None:
            found = found.where(_before(CLIPS, after))
        found = found.order_by(CLIPS.c.started_unix_ms.desc(), CLIPS.c.id.desc()).limit(limit)
        async with self._connect() as connection:
            return [_clip(row) for row in (await connection.execute(found)).mappings()]

    async def oldest_clips(self, limit: int) -> list[Clip]:
        columns = [column for column in CLIPS.c if column.name != "thumbnail"]
        found = select(*columns).where(CLIPS.c.node == self._node)
        found = found.order_by(CLIPS.c.started_unix_ms, CLIPS.c.id).limit(limit)
        async with self._connect() as connection:
            return [_clip(row) for row in (await connection.execute(found)).mappings()]

    async def clip(self, clip_id: str) -> Clip | None:
        """With its thumbnail."""
        found = select(CLIPS).where(CLIPS.c.id == clip_id, CLIPS.c.node == self._node)
        async with self._connect() as connection:
            row = (await connection.execute(found)).mappings().first()
            return None if row is None else _clip(row)

    async def clip_bytes(self) -> int:
        total = select(func.coalesce(func.sum(CLIPS.c.bytes), 0)).where(CLIPS.c.node == self._node)
        async with self._connect() as connection:
            return int((await connection.execute(total)).scalar() or 0)

    async def forget_clips(self, identities: Sequence[str]) -> None:
        async with self._begin() as connection:
            await connection.execute(delete(CLIPS).where(CLIPS.c.id.in_(identities)))

    @property
    def place(self) -> str:
        """Where it is, without a password."""
        file = sqlite_file(self._engine.url)
        return str(file) if file else self._engine.url.render_as_string(hide_password=True)


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield
    except (DataError, IntegrityError) as error:
        raise StoreRefusedError(f"store: refused: {_reason(error)}") from error
    except (SQLAlchemyError, OSError) as error:
        raise UnavailableError(f"store: the database is away: {_reason(error)}", RETRY_S) from error


def _reason(error: BaseException) -> str:
    """One line, without the statement and its values: they may hold what is nobody's business."""
    cause = getattr(error, "orig", None) or error
    line = (str(cause).splitlines() or [""])[0][:200]
    return f"{type(cause).__name__}: {line}" if line else type(cause).__name__


def _filtered(found: Select[tuple[str]], wish: Search) -> Select[tuple[str]]:
    columns = EVENTS.c
    for column, value in (
        (columns.stream, wish.stream),
        (columns.class_name, wish.class_name),
        (columns.zone, wish.zone),
        (columns.kind, wish.kind),
    ):
        if value is not None:
            found = found.where(column == value)
    if "*" not in wish.patterns:
        # By substr and not by LIKE, which takes upper for lower case in SQLite.
        found = found.where(
            or_(
                *(
                    func.substr(columns.stream, 1, len(pattern) - 1) == pattern[:-1]
                    if pattern.endswith("*")
                    else columns.stream == pattern
                    for pattern in wish.patterns
                )
            )
        )
    if wish.since_unix_ms is not None:
        found = found.where(columns.started_unix_ms >= wish.since_unix_ms)
    if wish.until_unix_ms is not None:
        found = found.where(columns.started_unix_ms < wish.until_unix_ms)
    if wish.acknowledged is not None:
        is_open = columns.acknowledged_unix_ms.is_(None)
        found = found.where(~is_open if wish.acknowledged else is_open)
    if wish.after is not None:
        found = found.where(_before(EVENTS, wish.after))
    return found.order_by(columns.started_unix_ms.desc(), columns.id.desc()).limit(wish.limit)


def _before(table: Any, after: tuple[int, str]) -> Any:
    started_unix_ms, identity = after
    columns = table.c
    return and_(
        columns.started_unix_ms <= started_unix_ms,
        or_(columns.started_unix_ms < started_unix_ms, columns.id < identity),
    )


def _stored(row: Any) -> StoredEvent:
    event = Event(
        id=row["id"],
        stream=row["stream"],
        kind=row["kind"],
        class_name=row["class_name"],
        track_id=row["track_id"],
        zone=row["zone"],
        started_unix_ms=row["started_unix_ms"],
        ended_unix_ms=row["ended_unix_ms"],
        score=row["score"],
        direction=row["direction"],
    )
    if row["box"] is not None:
        x1, y1, x2, y2 = json.loads(row["box"])
        event = replace(event, box=(x1, y1, x2, y2))
    return StoredEvent(
        event=event,
        interrupted=row["interrupted"],
        acknowledged_unix_ms=row["acknowledged_unix_ms"],
        acknowledged_by=row["acknowledged_by"],
        has_snapshot=row["snapshot_bytes"] > 0,
    )


def _clip(row: Any) -> Clip:
    return Clip(
        id=row["id"],
        stream=row["stream"],
        started_unix_ms=row["started_unix_ms"],
        duration_ms=row["duration_ms"],
        size_bytes=row["bytes"],
        size_wh=(row["width"], row["height"]),
        event_id=row["event_id"],
        thumbnail=row.get("thumbnail"),
    )


def _clean(value: str) -> str:
    """PostgreSQL takes no NUL, and names have an end."""
    return value.replace("\0", "")[:255]
