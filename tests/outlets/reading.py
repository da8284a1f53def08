"""An SSE reader that is written from the standard, not from our client."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientResponse

from tests.serving import DEADLINE_S


@dataclass(slots=True)
class Event:
    """One event as a browser's EventSource would dispatch it."""

    kind: str
    data: dict[str, Any]
    last_id: str


@dataclass(slots=True)
class Reader:
    """Reads events one by one; comments are counted."""

    reply: ClientResponse
    last_id: str = ""
    comments: int = 0
    retry_ms: int = 0
    seen: list[str] = field(default_factory=list)

    async def next(self) -> Event:
        """The next event, whatever its kind."""
        kind, data = "message", ""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                line = (await self.reply.content.readline()).decode()
                if not line:
                    raise EOFError
                name, _, value = line.rstrip("\n").partition(": ")
                if line.startswith(":"):
                    self.comments += 1
                elif name == "event":
                    kind = value
                elif name == "data":
                    data += value
                elif name == "id":
                    self.last_id = value
                elif name == "retry":
                    self.retry_ms = int(value)
                elif data:
                    self.seen.append(kind)
                    return Event(kind, json.loads(data), self.last_id)

    async def wait_for(self, kind: str) -> Event:
        """The next event of this kind."""
        while (event := await self.next()).kind != kind:
            pass
        return event
