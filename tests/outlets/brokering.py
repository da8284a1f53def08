"""A real mosquitto on a port of its own, and somebody who listens to all that is said there."""

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from tests.serving import DEADLINE_S, until


def mosquitto_path() -> str:
    """Without it the test fails under CI and skips elsewhere."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    found = shutil.which("mosquitto", path=path)
    if found is not None:
        return found
    reason = "mosquitto is not installed (apt-get install mosquitto)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        port: int = own.getsockname()[1]
        return port


@dataclass(slots=True)
class Broker:
    """Started and stopped as a test needs it; keeps nothing over a restart."""

    path: str
    folder: Path
    port: int
    options: tuple[str, ...]
    process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        lines = [f"listener {self.port} 127.0.0.1", "persistence false", *self.options]
        if os.geteuid() == 0:
            # It would become a user who may not read the test's folder.
            lines.append("user root")
        config = self.folder / "mosquitto.conf"
        config.write_text("\n".join(lines) + "\n")
        self.process = await asyncio.create_subprocess_exec(
            self.path, "-c", str(config), stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(DEADLINE_S):
            while True:
                assert self.process.returncode is None, "mosquitto ended at once"
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        async with asyncio.timeout(DEADLINE_S):
            await self.process.wait()
        self.process = None


@asynccontextmanager
async def brokering(folder: Path, *options: str) -> AsyncIterator[Broker]:
    """A broker that is up until the block ends; anybody may do anything unless told otherwise."""
    broker = Broker(mosquitto_path(), folder, free_port(), options or ("allow_anonymous true",))
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@dataclass(slots=True)
class Overheard:
    """What was said: the newest by topic, and all of it in order."""

    newest: dict[str, str] = field(default_factory=dict)
    retained: set[str] = field(default_factory=set)
    """Topics whose first message was there before we came."""
    said: list[tuple[str, str]] = field(default_factory=list)

    async def wait_for(self, topic: str, payload: str) -> None:
        await until(lambda: self.newest.get(topic) == payload)

    def of(self, topic: str) -> list[str]:
        return [payload for said_in, payload in self.said if said_in == topic]


@asynccontextmanager
async def overhearing(port: int, **options: Any) -> AsyncIterator[Overheard]:
    """Listens to every topic until the block ends."""
    overheard = Overheard()

    async def listen(client: aiomqtt.Client) -> None:
        async for message in client.messages:
            topic = str(message.topic)
            assert isinstance(message.payload, bytes)
            payload = message.payload.decode("utf-8", "replace")
            if message.retain:
                overheard.retained.add(topic)
            overheard.newest[topic] = payload
            overheard.said.append((topic, payload))

    async with aiomqtt.Client("127.0.0.1", port, **options) as client:
        await client.subscribe("#", qos=1)
        task = asyncio.create_task(listen(client))
        try:
            yield overheard
        finally:
            task.cancel()
            await asyncio.wait([task])
