"""Connections: SQLite in one file by default, PostgreSQL by URL; brought up to date when opened.

SQLite writes ahead (WAL) and waits for the disk at every commit, so that what was committed
outlives the power. A database that a newer Sightline has changed is refused.
"""

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util.exc import CommandError
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from server.clock import now_ns, s_to_ns
from server.errors import SettingsError

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 15.0
POOL = 4
LOCKED_PAUSE_S = 0.02
# Two servers that start at once on one PostgreSQL: one brings it up to date, the other waits.
UPGRADE_LOCK = 0x5169_6874


def parse_url(text: str) -> URL:
    """The URL with the driver that we use; refuses other databases."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise SettingsError(
            "store: not auto, off, or a URL such as sqlite:////var/lib/sightline/events.db "
            "or postgresql://user:password@host/database"
        ) from None
    driver = DRIVERS.get(url.get_backend_name())
    if driver is None:
        raise SettingsError(f"store: {url.get_backend_name()} is not sqlite or postgresql")
    if driver.startswith("sqlite") and not url.database:
        raise SettingsError("store: sqlite wants a file, as sqlite:////var/lib/sightline/events.db")
    return url.set(drivername=driver)


def sqlite_file(url: URL) -> Path | None:
    """The database's file; None for a server."""
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def make_engine(url: URL) -> AsyncEngine:
    """Connects when first used."""
    if url.get_backend_name() == "sqlite":
        engine = create_async_engine(
            url, pool_size=POOL, max_overflow=0, connect_args={"timeout": CONNECT_TIMEOUT_S}
        )
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        return engine
    return create_async_engine(
        url,
        pool_size=POOL,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_S,
        # A connection that died while idle is replaced without anybody noticing.
        pool_pre_ping=True,
        connect_args={"timeout": CONNECT_TIMEOUT_S, "command_timeout": COMMAND_TIMEOUT_S},
    )


def _prepare_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={int(CONNECT_TIMEOUT_S * 1000)}",
        # Takes effect on a file without tables only: it lets retention give room back.
        "auto_vacuum=INCREMENTAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    deadline_ns = now_ns() + s_to_ns(CONNECT_TIMEOUT_S)
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            # Of several that change a new file at once SQLite lets one wait, and fails the others.
            if "locked" not in str(error) or now_ns() > deadline_ns:
                raise
            await_only(asyncio.sleep(LOCKED_PAUSE_S))
    cursor.close()


async def upgrade(engine: AsyncEngine) -> None:
    """Bring the tables up to date."""
    file = sqlite_file(engine.url)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade)
    if file is not None:
        # Pictures of people: for its owner alone.
        for part in (file, *file.parent.glob(file.name + "-*")):
            # Another server's connection may have ended, and its files with it.
            with contextlib.suppress(FileNotFoundError):
                part.chmod(0o600)


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
    else:
        # Python begins a transaction before the first change of rows only; tables count too.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    config = Config()
    folder = Path(__file__).parent
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)

    def steps(revision: Any, _: object) -> Any:
        return script._upgrade_revs("head", revision)

    try:
        with EnvironmentContext(config, script, fn=steps, destination_rev="head") as environment:
            environment.configure(connection=connection)
            with environment.begin_transaction():
                environment.run_migrations()
    except (CommandError, ResolutionError) as error:
        raise SettingsError(
            f"store: the database was changed by a newer Sightline, or is not one of ours: {error}"
        ) from None
