"""The demo on the call page: something that moves, for who has no camera."""

from pathlib import Path

import pytest

from bench.browsers.driver import Browser, open_page
from tests.page.looking import assert_clean, call_is
from tests.page.making import ServerProcess

pytestmark = pytest.mark.browser

VIDEO = "document.querySelector('sightline-tile')?.shadowRoot.querySelector('video')"
DEMO_VIEWERS = (
    "fetch('/api/streams/demo').then((reply) => reply.json()).then(({ viewers }) => viewers)"
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


async def test_without_a_camera_the_demo_is_offered_and_plays(browser: Browser, log: Path) -> None:
    async with (
        ServerProcess(log, "--demo", "on") as server,
        open_page(browser, camera="none") as page,
    ):
        await page.goto(server.url)
        await page.click("#start")
        await page.wait_for(call_is("failed"))
        assert "No camera found" in await page.text("#message-text")
        assert await page.text("#message-demo") == "Watch the demo"
        await page.click("#message-demo")
        await page.wait_for(call_is("demo"))
        await page.wait_for(f"({VIDEO})?.videoWidth === 640")
        await page.wait_for(f"({VIDEO})?.currentTime > 0.5")
        assert await page.text("#status") == "Demo"
        # The same button that ends a call ends it, and the server's work with it.
        assert await page.text("#start") == "Stop"
        await page.click("#start")
        await page.wait_for(call_is("idle"))
        assert await page.evaluate("document.querySelector('sightline-tile') === null")
        await page.wait_for(f"{DEMO_VIEWERS}.then((viewers) => viewers === 0)")
        await assert_clean(page)


@pytest.mark.long
async def test_a_call_takes_the_place_of_the_demo(chromium: Browser, log: Path) -> None:
    async with ServerProcess(log, "--demo", "on") as server, open_page(chromium) as page:
        await page.goto(server.url)
        await page.wait_for("!document.querySelector('#message-demo').hidden")
        await page.click("#message-demo")
        await page.wait_for(call_is("demo"))
        await page.click("#start")
        await page.wait_for(call_is("idle"))
        await page.click("#start")
        await page.wait_for(call_is("live"))
        await assert_clean(page)


@pytest.mark.long
async def test_a_server_without_demo_offers_none(chromium: Browser, log: Path) -> None:
    async with ServerProcess(log) as server, open_page(chromium) as page:
        await page.goto(server.url)
        # What the server runs is known, and with it whether there is a demo.
        await page.wait_for("document.querySelector('#fact-model').innerText.includes('none')")
        assert await page.evaluate("document.querySelector('#message-demo').hidden")
