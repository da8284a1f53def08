"""The tile in real browsers: plays, tells its age, comes back, rests when nobody looks."""

from pathlib import Path

import pytest

from bench.browsers.driver import Browser, open_page
from tests.page.making import ServerProcess
from tests.tile.watching_page import (
    TILE,
    camera,
    put_tile,
    server_viewers,
    state_is,
    statistic,
)

pytestmark = pytest.mark.browser

SHADOW = f"{TILE}.shadowRoot"
AGE_IS_SHOWN = f"/^[0-9.]+ m?s$/.test({SHADOW}.querySelector('.age').textContent)"
MARKUP = "<img src=x onerror=window.hurt=1>"

CASES: tuple[tuple[str, object], ...] = (
    # The pause doubles, half of it by chance, and stays below its bound.
    (
        "[[0, 0], [0, 1], [3, 1], [99, 1]].map((each) => t.pauseMs(...each))",
        [250, 500, 4000, 15000],
    ),
    # Over the wrap of timestamps, both ways.
    (
        "[[5, 2 ** 32 - 6], [2 ** 32 - 6, 5], [7, 7]].map((each) => t.ticksBetween(...each))",
        [11, -11, 0],
    ),
    # Settings are not for who looks; what they limit is.
    (
        "['max_viewers: 2 watch', 'admit_loop_lag_ms: at 300 ms', 'the server is stopping']"
        ".map(t.crowded)",
        [
            ["Full", "2 watch"],
            ["The server is busy", "It takes nobody new for a moment."],
            ["The server is busy", "the server is stopping"],
        ],
    ),
    # A choice stays until it is clearly wrong.
    ("[380, 400].map((wide) => t.fittingRung(wide, 640, 'full'))", ["low", "full"]),
    ("[440, 470].map((wide) => t.fittingRung(wide, 640, 'low'))", ["low", "full"]),
)


@pytest.fixture
def server(tmp_path: Path, detector_file: Path) -> ServerProcess:
    return ServerProcess(
        tmp_path / "server.log", "--model", str(detector_file), "--provider", "cpu"
    )


async def test_a_tile_lives_through_its_day(
    browser: Browser, server: ServerProcess, tmp_path: Path
) -> None:
    async with server, open_page(browser, camera="none") as page:
        await page.goto(f"{server.url}embed/nothing")
        await put_tile(page, stream="porch", label=MARKUP, rung="full")

        # The camera is not there yet; the tile waits for it.
        await page.wait_for(state_is("waiting"))
        assert "No such stream" in await page.evaluate(
            f"{SHADOW}.querySelector('.title').textContent"
        )
        async with camera(server.url, tmp_path, "porch"):
            await page.wait_for(state_is("live"))
            await page.wait_for(AGE_IS_SHOWN)
            await page.wait_for(statistic("s.size[0] === 320 && s.fps > 0 && s.ageMs < 30000"))

            # What stands in an attribute is text.
            assert await page.evaluate(f"{SHADOW}.querySelector('.name').textContent") == MARKUP
            assert await page.evaluate(f"{TILE}.getAttribute('aria-label')") == f"{MARKUP}, live"
            assert not await page.evaluate("window.hurt ?? false")
            kind = (
                f"{TILE}.snapshot().then((b) => b.arrayBuffer()).then((b) => new Uint8Array(b)[1])"
            )
            assert await page.evaluate(kind) == ord("P")

            # Ended by the server: made again.
            await page.evaluate(
                server_viewers(
                    "fetch(`/whep/porch/${v[0].session}`, { method: 'DELETE' }).then(() => 1)"
                )
            )
            await page.wait_for(statistic("s.connections === 2 && s.state === 'live'"))

            # Small tiles get the small picture, without a gap.
            await page.evaluate(f"void {TILE}.removeAttribute('rung')")
            await page.evaluate(f"void ({TILE}.style.width = '150px')")
            await page.wait_for(statistic("s.rung === 'low' && s.size[0] === 160"))
            await page.wait_for(server_viewers("v.length === 1 && v[0].rung === 'low'"))

            # Off the screen nothing is sent; the last picture stays.
            await page.evaluate(f"void ({TILE}.style.marginTop = '6000px')")
            await page.wait_for(state_is("paused"))
            await page.wait_for(server_viewers("v.length === 0"))
            assert await page.evaluate(f"{SHADOW}.querySelector('.still').width > 0")
            await page.evaluate(f"void ({TILE}.style.marginTop = '0')")
            await page.wait_for(state_is("live"))

            # Moved in the page it goes on; taken out it ends.
            made = await page.evaluate(statistic("s.connections"))
            await page.evaluate(f"document.body.append({TILE})")
            await page.wait_for(statistic(f"s.connections === {made} && s.state === 'live'"))
            await page.evaluate(f"{TILE}.remove()")
            await page.wait_for(server_viewers("v.length === 0"))
            # It took its leave each time from a session that was still there.
            assert not [error for error in page.errors if "/whep/porch/" in error]
        assert await page.violations() == []


async def test_the_module_computes_what_it_says(chromium: Browser, server: ServerProcess) -> None:
    async with server, open_page(chromium, camera="none") as page:
        await page.goto(server.url)
        for expression, expected in CASES:
            asked = f"import('/tile.js').then((t) => {expression})"
            assert await page.evaluate(asked) == expected, expression
