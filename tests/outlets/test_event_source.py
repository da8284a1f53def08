"""A browser's own EventSource: what it hears, and that it comes back with the last id."""

import pytest

from bench.browsers.driver import Browser, Page, open_page
from server.outlets.bulletin import EVENTS
from tests.outlets.cutting import cutting
from tests.serving import serving, until

pytestmark = pytest.mark.browser

LISTEN = """(() => {
  window.told = [];
  window.opened = 0;
  const source = new EventSource('/api/events/live?topics=events');
  source.addEventListener('hello', () => { window.opened += 1; });
  source.addEventListener('event', (e) => window.told.push(JSON.parse(e.data).id));
  return true;
})()"""


async def heard(page: Page, *ids: str) -> None:
    wanted = ",".join(ids)
    await page.wait_for(f"window.told.join() === '{wanted}'")


async def test_an_event_source_misses_nothing_when_its_line_breaks(browser: Browser) -> None:
    async with (
        serving(None) as server,
        cutting(server.url) as cut,
        open_page(browser, camera="none") as page,
    ):
        await page.goto(f"{cut.url}/")
        assert await page.evaluate(LISTEN)
        await until(lambda: server.bulletin.statistics().subscriptions == 1)
        server.bulletin.post(EVENTS, "porch", {"id": "1"})
        await heard(page, "1")
        cut.target = ""
        cut.cut()
        server.bulletin.post(EVENTS, "porch", {"id": "2"})
        cut.target = server.url
        await heard(page, "1", "2")
        assert await page.evaluate("window.opened") == 2
