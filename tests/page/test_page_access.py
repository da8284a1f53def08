"""A server that wants a key: the page asks for it, keeps it for the tab, and calls with it."""

import json
from pathlib import Path

import pytest

from bench.browsers.driver import Browser, Page, open_page
from tests.page.looking import assert_clean, call_is
from tests.page.making import ServerProcess

pytestmark = pytest.mark.browser

KEY = "page-key-of-the-tests-0123456789"
ASKED = "document.querySelector('#access').open"


def locked_server(folder: Path) -> ServerProcess:
    keys = folder / "keys"
    keys.write_text(f"publish:*:{KEY}\n")
    keys.chmod(0o600)
    return ServerProcess(
        folder / "server.log",
        "--auth", "on", "--state-dir", str(folder / "state"), "--api-keys-file", str(keys),
    )  # fmt: skip


async def give(page: Page, key: str) -> None:
    await page.wait_for(ASKED)
    await page.evaluate(f"document.querySelector('#access-key').value = {json.dumps(key)}")
    await page.click("#access .primary")


async def test_a_key_opens_the_call_and_is_kept_for_the_tab(
    browser: Browser, tmp_path: Path
) -> None:
    async with locked_server(tmp_path) as server, open_page(browser) as page:
        await page.goto(server.url)
        await page.click("#start")
        await give(page, KEY)
        await page.wait_for(call_is("live"))
        await page.goto(server.url)
        await page.click("#start")
        await page.wait_for(call_is("live"))
        assert not await page.evaluate(ASKED)
        assert not await page.evaluate(f"location.href.includes('{KEY}')")
        await assert_clean(page)


async def test_a_wrong_key_is_asked_for_again_and_may_be_declined(
    chromium: Browser, tmp_path: Path
) -> None:
    async with locked_server(tmp_path) as server, open_page(chromium) as page:
        await page.goto(server.url)
        await page.click("#start")
        await give(page, "two words")
        assert await page.evaluate(ASKED), "that cannot even be sent"
        await give(page, KEY[::-1])
        await page.wait_for(
            f"{ASKED} && document.querySelector('#access-why').textContent.startsWith('Another')"
        )
        await page.click("#access-cancel")
        await page.wait_for(f"!{ASKED}")
        assert await page.evaluate(call_is("failed"))
        assert "This server is locked" in await page.text("#message-text")
        await page.click("#start")
        await give(page, KEY)
        await page.wait_for(call_is("live"))
