"""The dashboard with real streams: all are shown, settings take effect, the order is kept."""

import contextlib
import json
from pathlib import Path

import pytest

from bench.browsers.driver import Browser, Page, open_page
from tests.page.looking import start_call
from tests.page.making import ServerProcess
from tests.tile.watching_page import camera

pytestmark = pytest.mark.browser

KEY = "dashboard-key-of-the-tests-0123456789"
NAMES = "[...document.querySelectorAll('.cell')].map((cell) => cell.dataset.name)"
LIVE = "document.querySelectorAll('sightline-tile[state=live]').length"
TILES = "[...document.querySelectorAll('sightline-tile')]"
CONNECTIONS = f"{TILES}.map((tile) => tile.statistics().connections)"
SUMMARY = "document.querySelector('#summary').textContent"
WATCHERS = "document.querySelector('#panel-watchers').innerText"
TUNE = "document.querySelector('[data-name=yard] .tool[title^=Settings]').click()"
STREAMS = "fetch('/api/streams').then((r) => r.json()).then((b) => b.streams)"
MODULES: tuple[tuple[str, object], ...] = (
    # As big as fits: beside each other in a wide window, one above the other in a tall one.
    ("import('/web/board_grid.js').then((m) => m.bestFit(2, 1600, 500).columns)", 2),
    ("import('/web/board_grid.js').then((m) => m.bestFit(2, 500, 900).columns)", 1),
    ("import('/web/board_grid.js').then((m) => m.bestFit(36, 1600, 900).columns)", 6),
    # What has a place keeps it; what is new comes after, by name.
    (
        "import('/web/board_grid.js')"
        ".then((m) => m.ordered(['b', 'c', 'a', 'd'], ['d', 'x', 'c']))",
        ["d", "c", "a", "b"],
    ),
)


@pytest.fixture
def server(tmp_path: Path, detector_file: Path) -> ServerProcess:
    return ServerProcess(
        tmp_path / "server.log", "--model", str(detector_file), "--provider", "cpu",
        "--state-dir", str(tmp_path / "state"), "--demo", "off",
    )  # fmt: skip


async def test_streams_are_shown_tuned_and_put_in_order(
    other_browser: Browser, server: ServerProcess, tmp_path: Path
) -> None:
    async with server, contextlib.AsyncExitStack() as stack:
        for name in ("yard", "attic"):
            folder = tmp_path / name
            folder.mkdir()
            await stack.enter_async_context(camera(server.url, folder, name))
        page = await stack.enter_async_context(open_page(other_browser, camera="none"))
        await page.goto(f"{server.url}dashboard")
        await page.wait_for(f"{LIVE} === 2")
        assert await page.evaluate(NAMES) == ["attic", "yard"]
        await page.wait_for(f"{SUMMARY} === '2 live · 2 watching'")
        await page.wait_for("document.querySelector('.health').textContent.includes('1 watching')")

        # By keyboard, without a stop in the picture, and kept.
        await page.evaluate("document.querySelector('[data-name=attic] .move').focus()")
        await page.press("ArrowRight")
        assert await page.evaluate(NAMES) == ["yard", "attic"]
        assert "place 2 of 2" in await page.evaluate(
            "document.querySelector('#spoken').textContent"
        )
        assert await page.evaluate(CONNECTIONS) == [1, 1]
        focused = "document.activeElement.closest('.cell').dataset.name"
        assert await page.evaluate(focused) == "attic"
        await page.goto(f"{server.url}dashboard")
        await page.wait_for(f"{LIVE} === 2")
        assert await page.evaluate(NAMES) == ["yard", "attic"]

        await page.evaluate(TUNE)
        await page.wait_for(f"{WATCHERS}.startsWith('127.0.0.1') && {WATCHERS}.includes('size')")
        await page.wait_for("!document.querySelector('#classes-open').disabled")
        await page.evaluate(
            "(() => { const s = document.querySelector('#confidence'); s.value = '75';"
            " s.dispatchEvent(new Event('input', { bubbles: true })); })()"
        )
        await page.click("#mode input[value=smooth]")
        await page.wait_for(
            f"{STREAMS}.then((all) => all.find((s) => s.name === 'yard').options)"
            ".then((o) => o.confidence === 0.75 && o.mode === 'smooth')"
        )
        # What crosses itself is refused in words; what is drawn well is kept.
        await page.click("#panel-draw")
        await page.wait_for("!document.querySelector('#draw-save').disabled")
        await draw(page, (0.2, 0.2), (0.8, 0.8), (0.8, 0.2), (0.2, 0.8))
        await page.click("#draw-save")
        await page.wait_for("document.querySelector('#draw-said').textContent.includes('crosses')")
        await page.click("#draw-list .link")
        await draw(page, (0.2, 0.2), (0.8, 0.2), (0.8, 0.8))
        await page.evaluate("document.querySelector('[data-corner=\"0\"]').focus()")
        await page.press("ArrowRight")
        await page.evaluate("void (document.querySelector('#draw-appear').value = 'person')")
        await page.click("#draw-save")
        await page.wait_for("!document.querySelector('#draw').open")
        corners = (
            "fetch('/api/streams/yard/zones').then((r) => r.json()).then((l) => l.zones[0].points)"
        )
        (x, y), *others_of_zone = await page.evaluate(corners)
        assert (x, y) == (pytest.approx(0.21, abs=0.01), pytest.approx(0.2, abs=0.01))
        assert len(others_of_zone) == 2
        await page.wait_for(
            "document.querySelector('#panel-counts').textContent.includes('Zone 1')"
        )

        others = f"{STREAMS}.then((all) => all.find((s) => s.name === 'attic').options.confidence)"
        assert await page.evaluate(others) != 0.75
        await page.press("Escape")
        assert await page.evaluate("document.querySelector('#panel').hidden")

        # What happens is beside the pictures, kept, and marked as seen.
        await page.click("#events-open")
        listed = "document.querySelector('#events-list').textContent"
        await page.wait_for(f"{listed}.includes('person appeared')")
        await page.click("#history-open")
        await page.wait_for("document.querySelectorAll('#history-svg .happened').length >= 1")
        await page.evaluate("document.querySelector('#history-svg').focus()")
        await page.press("ArrowRight")
        await page.wait_for("document.querySelector('#history-detail img')?.naturalWidth > 0")
        await page.click("#history-detail button")
        await page.wait_for("document.querySelector('.card-event').hasAttribute('data-seen')")
        await page.click("#history-close")
        await page.click("#events-close")

        # A phone's code, and what is in it.
        await page.click("#add-open")
        await page.wait_for("document.querySelector('#add-qr').naturalWidth > 0")
        page_url = "document.querySelector('#add-urls code').textContent"
        assert await page.evaluate(page_url) == f"{server.url}?stream=camera-1"
        await page.press("Escape")

        await page.evaluate(TUNE)
        for _ in ("asked", "done"):
            await page.click("#panel-remove")
        await page.wait_for(f"{NAMES}.length === 1")
        assert await page.violations() == []


async def test_the_dashboard_asks_for_a_key_and_shows_what_it_may(
    chromium: Browser, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"publish+view:*:{KEY}\n")
    keys.chmod(0o600)
    server = ServerProcess(
        tmp_path / "server.log",
        "--auth", "on", "--demo", "off", "--state-dir", str(tmp_path / "state"),
        "--api-keys-file", str(keys),
    )  # fmt: skip
    async with (
        server,
        camera(server.url, tmp_path, "porch", KEY),
        open_page(chromium, camera="none") as page,
    ):
        await page.goto(f"{server.url}dashboard")
        await page.wait_for("document.querySelector('#access').open")
        await page.evaluate(f"document.querySelector('#access-key').value = {json.dumps(KEY)}")
        await page.click("#access .primary")
        await page.wait_for(f"{LIVE} === 1")
        assert KEY not in await page.evaluate("document.documentElement.outerHTML")
        # Changing it for everybody is not for this key, nor is who watches, and is said.
        await page.evaluate("document.querySelector('.tool[title^=Settings]').click()")
        await page.wait_for(f"{WATCHERS}.startsWith('1 watching. Who they are is told to')")
        await page.click("#mode input[value=smooth]")
        await page.wait_for("document.querySelector('#panel-said').textContent.includes('scope')")


async def test_the_panel_says_why_pictures_are_not_shown(
    other_browser: Browser, server: ServerProcess
) -> None:
    show = """(async (dropped) => {
      const { Panel } = await import('/web/board_panel.js');
      const stream = { name: 'yard', live: true, source: 'whip', size: [640, 360], fps: 15,
        viewers: 0, age_s: 9, options: null, dropped };
      window.ours ??= new Panel({ closed() {}, changed() {}, draw() {} });
      if (window.ours.name) window.ours.show(stream, null, []);
      else window.ours.open(stream);
      const facts = [...document.querySelectorAll('#panel-facts div')];
      return facts.find((each) => each.textContent.startsWith('Not shown')).lastChild.textContent;
    })(%s)"""
    async with server, open_page(other_browser, camera="none") as page:
        await page.goto(f"{server.url}dashboard")
        await page.wait_for("!document.querySelector('#nothing').hidden")
        assert await page.evaluate(show % "{}") == "none"
        told = await page.evaluate(show % "{replaced: 2, lost: 5, thirst: 1}")
        # The most frequent first; a reason that this page does not know yet by its name.
        assert told == "8 (5 lost on the way, 2 a newer one came first, 1 thirst)"
        # What grows is told as a rate, from one look to the next.
        await page.wait_for(
            "(window.before ??= performance.now(), performance.now() - window.before > 1100)"
        )
        told = await page.evaluate(show % "{lost: 20}")
        assert told.startswith("20, ")
        assert "per second now" in told
        await page.wait_for(
            "(window.then ??= performance.now(), performance.now() - window.then > 1100)"
        )
        assert (await page.evaluate(show % "{lost: 20}")).startswith("20, none now")


PANEL = """(async (more, viewers) => {
  const { Panel } = await import('/web/board_panel.js');
  const stream = { name: 'yard', live: true, source: 'whip', size: [640, 360], fps: 15,
    viewers: 9, age_s: 9, options: { mode: 'exact', confidence: 0.5, classes: null }, ...more };
  window.ours ??= new Panel({ closed() {}, changed() {}, draw() {} });
  if (!window.ours.name) window.ours.open(stream);
  window.ours.setNames(['person', 'car']);
  window.ours.show(stream, null, viewers);
})(%s, %s)"""


async def test_who_watches_is_shown_as_text_and_by_what_is_known_of_them(
    chromium: Browser, server: ServerProcess
) -> None:
    known = {
        "name": "<b>Foyer</b>", "by": "key 0a1b2c3d", "address": "192.0.2.7", "state": "live",
        "rung": "low", "codec": "H264", "age_s": 61.2, "rtt_ms": 12.4, "packets_sent": 1000,
        "packets_resent": 20,
    }  # fmt: skip
    nameless = known | {"name": "", "rtt_ms": None, "packets_resent": 0, "rung": "full"}
    async with server, open_page(chromium, camera="none") as page:
        await page.goto(f"{server.url}dashboard")
        await page.wait_for("!document.querySelector('#nothing').hidden")
        await page.evaluate(PANEL % ("{}", json.dumps([known, nameless])))
        assert (await page.evaluate(WATCHERS)).splitlines() == [
            "<b>Foyer</b>",
            "192.0.2.7 · H264 · half size · for 61 s · 12 ms away · 2.0 % sent twice",
            "key 0a1b2c3d",
            "192.0.2.7 · H264 · full size · for 61 s",
        ]
        await page.evaluate(PANEL % ("{}", json.dumps([known] * 23)))
        assert (await page.evaluate(WATCHERS)).endswith("and 3 more")
        await page.evaluate(PANEL % ("{ viewers: 0 }", "null"))
        assert await page.evaluate(WATCHERS) == "Nobody"


async def test_a_phone_reaches_everything_with_a_finger(
    chromium: Browser, tmp_path: Path, detector_file: Path
) -> None:
    small = """[...document.querySelectorAll('button, a, select, input, summary')]
      .filter((each) => each.checkVisibility() && !each.matches('.segments input, .skip'))
      .map((each) => [each, (each.closest('label') ?? each).getBoundingClientRect()])
      .filter(([, { width, height }]) => width > 0 && (width < 44 || height < 44))
      .map(([{ id, className, tagName }]) => id || className || tagName)"""
    asked = "performance.getEntriesByType('resource').filter((e) => /streams$/.test(e.name)).length"
    server = ServerProcess(
        tmp_path / "server.log", "--demo", "on", "--model", str(detector_file), "--provider", "cpu"
    )
    async with server, open_page(chromium, camera="none") as page:
        await page.set_viewport(390, 844)
        await page.goto(f"{server.url}dashboard")
        await page.wait_for("document.querySelectorAll('.cell').length === 1")
        # What cannot be seen is not pressed.
        tools = "getComputedStyle(document.querySelector('.cell-tools')).pointerEvents"
        assert await page.evaluate(tools) == "none"
        assert await page.evaluate(small) == []
        await page.evaluate("document.querySelector('.tool[title^=Settings]').focus()")
        assert await page.evaluate(tools) == "auto"
        await page.press("Enter")
        await page.click("#panel summary")
        await page.wait_for("!document.querySelector('#classes-open').disabled")
        assert await page.evaluate(small) == []
        # The list of classes comes from the bottom of the screen and stays on it; one who goes
        # through it keeps the place while the server is asked again and again.
        await page.evaluate("document.querySelector('#classes-open').click()")
        shown = "document.querySelector('#classes-panel').getBoundingClientRect()"
        where = await page.evaluate(f"(({{ top, bottom }}) => [top, bottom, innerHeight])({shown})")
        assert 100 < where[0] < where[1] <= where[2]
        assert await page.evaluate(small) == []
        await page.evaluate("document.querySelector('#classes-list input').focus()")
        await page.evaluate(f"void (window.before = {asked})")
        await page.wait_for(f"{asked} >= window.before + 3")
        assert await page.evaluate("document.activeElement.value") == "person"
        # Escape closes what is nearest, then what is around it, wherever the focus is.
        await page.press("Escape")
        assert await page.evaluate("document.querySelector('#classes-panel').hidden")
        assert not await page.evaluate("document.querySelector('#panel').hidden")
        await page.evaluate("document.activeElement.blur()")
        await page.press("Escape")
        assert await page.evaluate("document.querySelector('#panel').hidden")
        for opener, dialog in (("#add-open", "#add"), ("#history-open", "#history")):
            await page.evaluate(f"document.querySelector('{opener}').click()")
            assert await page.evaluate(small) == []
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            await page.press("Escape")
            assert not await page.evaluate(f"document.querySelector('{dialog}').open")


async def test_what_a_server_said_last_is_not_shown_when_it_is_gone(
    chromium: Browser, tmp_path: Path
) -> None:
    server = ServerProcess(tmp_path / "server.log", "--demo", "on")
    async with server, open_page(chromium, camera="none") as page:
        await page.goto(f"{server.url}dashboard")
        health = "document.querySelector('.health')"
        await page.wait_for(f"{health}?.textContent.includes('watching')")
        await page.evaluate("document.querySelector('.tool[title^=Settings]').click()")
        await server.kill()
        await page.wait_for(f"{SUMMARY} === 'The server does not answer'")
        assert await page.evaluate(f"{health}.textContent") == ""
        assert await page.text("#panel-facts") == "Source\nThe server does not answer"
        await page.evaluate("document.querySelector('#history-open').click()")
        await page.wait_for(
            "document.querySelector('#history-said').textContent.startsWith('The server does not')"
        )


@pytest.mark.long
async def test_a_camera_that_never_came_is_not_taken_for_a_bad_path(
    browser: Browser, tmp_path: Path
) -> None:
    server = ServerProcess(
        tmp_path / "server.log", "--demo", "off", "--sources", "gone=rtsp://127.0.0.1:9/none"
    )
    async with server, open_page(browser, camera="none") as page:
        await page.goto(f"{server.url}dashboard")
        note = "document.querySelector('sightline-tile')?.shadowRoot.querySelector('.note')"
        await page.wait_for(f"{note}?.textContent.includes('The camera sends nothing')")
        assert "UDP" not in await page.evaluate(f"{note}.textContent")


async def test_the_page_of_a_phones_code_publishes_under_its_name(
    chromium: Browser, server: ServerProcess, camera_clip: Path
) -> None:
    async with server, open_page(chromium, clip=camera_clip) as page:
        await start_call(page, f"{server.url}?stream=camera-1")
        await page.wait_for(f"{STREAMS}.then(([stream]) => stream.name === 'camera-1')")


async def test_what_comes_from_the_server_is_text_on_the_page(
    chromium: Browser, server: ServerProcess
) -> None:
    event = {
        "id": "x",
        "stream": "<b>s</b>",
        "kind": "enter",
        "class": "<img src=x onerror=window.hurt=1>",
        "zone": "<script>window.hurt=1</script>",
        "started_unix_ms": 1_700_000_000_000,
    }
    async with server, open_page(chromium, camera="none") as page:
        await page.goto(f"{server.url}dashboard")
        await page.wait_for("!document.querySelector('#nothing').hidden")
        await page.evaluate(
            "import('/web/board_events.js').then(({ EventList }) => new EventList("
            "() => {}, () => {}, { of: (_, zone) => zone, knowThoseOf: async () => {} })"
            f".add({json.dumps(event)}, true)).then(() => 1)"
        )
        shown = await page.evaluate("document.querySelector('#events-list').textContent")
        assert "onerror" in shown
        assert "<b>s</b>" in shown
        assert not await page.evaluate("window.hurt ?? false")
        for expression, expected in MODULES:
            assert await page.evaluate(expression) == expected, expression
        await _qr_is_for_own_addresses(page)


async def _qr_is_for_own_addresses(page: Page) -> None:
    status = "fetch('/api/qr?text=' + encodeURIComponent({})).then((r) => r.status)"
    assert await page.evaluate(status.format("location.origin + '/'")) == 200
    for text in (
        "'https://elsewhere.example/'",
        "'javascript:1'",
        "location.origin + '/' + 'x'.repeat(400)",
    ):
        assert await page.evaluate(status.format(text)) == 400, text


async def draw(page: Page, *corners: tuple[float, float]) -> None:
    """A zone with these corners, in shares of the picture."""
    await page.click("#draw-zones")
    left, top, width, height = await page.evaluate(
        "(({ x, y, width, height }) => [x, y, width, height])"
        "(document.querySelector('#draw-svg').getBoundingClientRect())"
    )
    for x, y in corners:
        await page.click_at(left + x * width, top + y * height)
    await page.press("Enter")
