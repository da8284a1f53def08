"""A caller in a process of its own, for tests that kill it: prints `live` once pictures return."""

import asyncio
import sys

from aiohttp import ClientSession

from tests.serving import Caller, Serving


async def main(url: str) -> None:
    async with ClientSession() as http:
        caller = Caller()
        await caller.call(Serving(url, http, None, None, None, None, None))  # type: ignore[arg-type]
        await caller.picture()
        print("live", flush=True)
        while True:
            await caller.picture()


asyncio.run(main(sys.argv[1]))
