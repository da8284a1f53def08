"""A process that writes events as fast as it can and says on standard output what it has told
listeners and acknowledged, until it is killed: `python -m tests.analysis.killed URL`."""

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from server.clock import unix_ms
from server.history.journal import Journal
from server.history.store.database import parse_url
from server.history.store.store import Store
from server.settings import StoreSettings
from tests.analysis.happenings import begins


async def run(url: str) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    def post(stream: str, message: Mapping[str, Any]) -> None:
        print("told", message["id"], flush=True)
        told.put_nowait(message["id"])

    journal = Journal(StoreSettings(), lambda: Store(parse_url(url), "killed:1"), post, eager=True)
    journal.start()
    for _ in range(32):
        journal.happened(begins())
    while True:
        event_id = await told.get()
        journal.happened(begins())
        assert isinstance(journal.store, Store)
        await journal.store.acknowledge(event_id, "me", round(unix_ms()))
        print("acknowledged", event_id, flush=True)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
