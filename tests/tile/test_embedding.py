"""A page of another origin shows our streams where the settings name it, and only there."""

import asyncio
from pathlib import Path

import pytest

from bench.browsers.driver import Browser, Page, open_page
from tests.page.making import ServerProcess
from tests.tile.watching_page import TILE, camera, foreign_site, new_port, state_is, statistic

pytestmark = pytest.mark.browser

KEY = "embedding-key-of-the-tests-0123456789"
FRAME_SAYS = """
new Promise((resolve) => addEventListener('message', ({ data }) => {
  if (data?.type === 'sightline-state' && data.detail.state === 'live') resolve(true);
}))
"""


async def test_a_foreign_page_shows_tile_and_frame_with_tokens_that_run_out(
    other_browser: Browser, tmp_path: Path
) -> None:
    port = new_port()
    origin = f"http://127.0.0.1:{port}"
    key_file = tmp_path / "keys"
    key_file.write_text(f"publish+view+control:*:{KEY}\n")
    key_file.chmod(0o600)
    plain = tmp_path / "key"
    plain.write_text(KEY)
    server = ServerProcess(
        tmp_path / "server.log",
        "--auth", "on", "--state-dir", str(tmp_path / "state"), "--api-keys-file", str(key_file),
        "--allowed-origins", origin, "--frame-ancestors", origin,
    )  # fmt: skip
    async with (
        server,
        camera(server.url, tmp_path, "porch", KEY),
        foreign_site(port, server.url, "--key-file", str(plain), "--life", "6s") as site,
        open_page(other_browser, camera="none") as page,
    ):
        # Off the screen the frame would rest.
        await page.set_viewport(1280, 900)
        await page.goto(site)
        frame = asyncio.create_task(page.evaluate(FRAME_SAYS))
        # The token ends with the call; another one is fetched and it goes on.
        await page.wait_for(statistic("s.connections >= 2 && s.state === 'live'"))
        assert await frame
        assert await page.evaluate("document.querySelector('#log').innerText.includes('live')")
        assert KEY not in await page.evaluate("document.documentElement.outerHTML")
        assert await page.violations() == []


async def test_an_open_server_is_still_closed_to_pages_it_does_not_name(
    chromium: Browser, tmp_path: Path
) -> None:
    port, other = new_port(), new_port()
    origin = f"http://127.0.0.1:{port}"
    server = ServerProcess(tmp_path / "server.log", "--allowed-origins", origin)
    async with server, camera(server.url, tmp_path, "porch"), open_page(chromium) as page:
        async with foreign_site(port, server.url) as site:
            await page.goto(site)
            await page.wait_for(state_is("live"))
            # Named for tiles is not named for frames.
            await told(page, "frame-ancestors")
        async with foreign_site(other, server.url) as site:
            del page.errors[:]
            await page.goto(site)
            await told(page, "CORS")
            assert not await page.evaluate("Boolean(customElements.get('sightline-tile'))")
            assert await page.evaluate(f"{TILE}.state === undefined")


async def told(page: Page, word: str) -> None:
    """The browser says so on its console, which comes while the page is asked things."""
    async with asyncio.timeout(20):
        while not any(word in error for error in page.errors):
            await page.evaluate("new Promise((resolve) => setTimeout(resolve, 50, 1))")
