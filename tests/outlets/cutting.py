"""A way to a server that can be cut and mended, for those who have to come back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(slots=True)
class Cut:
    """Forwards connections to where `url` leads now; new ones are closed while it leads nowhere."""

    target: str = ""
    url: str = ""
    ways: int = 0
    """Connections so far."""
    open_ways: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """End all connections, as a broken line would."""
        for writer in self.open_ways:
            writer.transport.abort()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ways += 1
        if not self.target:
            writer.transport.abort()
            return
        parts = urlsplit(self.target)
        far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port)
        both = {writer, far_writer}
        self.open_ways |= both
        try:
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        finally:
            self.open_ways -= both
            for end in both:
                end.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def cutting(target: str) -> AsyncIterator[Cut]:
    cut = Cut(target)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(cut.forward(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    cut.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield cut
    finally:
        server.close()
        cut.cut()
        if tasks:
            await asyncio.wait(tasks)
