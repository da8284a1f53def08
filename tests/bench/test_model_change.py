"""Changes of the model are asked for while something is measured, and a refusal is told."""

import asyncio

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.errors import ServerError
from bench.model_change import changing_models

pytestmark = pytest.mark.unit


class Models:
    """A server's route, as far as it matters here."""

    def __init__(self, known: set[str]) -> None:
        self.asked: list[str] = []
        self.enough = asyncio.Event()
        self._known = known

    async def put(self, request: web.Request) -> web.Response:
        model = (await request.json())["model"]
        self.asked.append(model)
        if len(self.asked) == 3 or model not in self._known:
            self.enough.set()
        return web.json_response({"detail": "ok"}, status=200 if model in self._known else 404)

    def server(self) -> TestServer:
        application = web.Application()
        application.router.add_put("/api/model", self.put)
        return TestServer(application)


async def test_models_take_turns_until_the_measurement_ends() -> None:
    models = Models({"a", "b"})
    async with models.server() as server, aiohttp.ClientSession() as http:
        url = str(server.make_url("")).rstrip("/")
        async with changing_models(http, url, ["a", "b"], 0.001) as changes:
            await asyncio.wait_for(models.enough.wait(), 15)
        ended = len(models.asked)
    assert models.asked[:3] == ["a", "b", "a"]
    assert len(changes) >= 2
    assert all(change.took_ms > 0 for change in changes)
    assert len(models.asked) == ended


async def test_a_refused_model_is_told_by_its_name() -> None:
    models = Models({"a"})

    async def measured() -> None:
        async with models.server() as server, aiohttp.ClientSession() as http:
            url = str(server.make_url("")).rstrip("/")
            async with changing_models(http, url, ["nowhere"], 0.001):
                await asyncio.wait_for(models.enough.wait(), 15)

    with pytest.raises(ServerError, match="--change-to: nowhere: "):
        await measured()


async def test_without_models_nothing_is_asked() -> None:
    models = Models(set())
    async with (
        models.server() as server,
        aiohttp.ClientSession() as http,
        changing_models(http, str(server.make_url("")), []) as changes,
    ):
        await asyncio.sleep(0)
    assert (models.asked, changes) == ([], [])
