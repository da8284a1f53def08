"""The call page with a real server, a real browser and a camera that plays a clip."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bench.browsers.driver import Browser, open_page
from tests.page.looking import (
    assert_clean,
    box_is_drawn,
    box_is_gone,
    call_is,
    drawn_by_page,
    set_slider,
    shape_is,
    start_call,
)
from tests.page.making import ServerProcess

pytestmark = pytest.mark.browser

# The only call as the server has it.
SESSION = "fetch('/api/stats').then((reply) => reply.json()).then((stats) => stats.sessions[0])"
SESSIONS = "fetch('/api/stats').then((reply) => reply.json()).then((s) => s.sessions.length)"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_server(page_files: Path, detector_file: Path) -> AsyncIterator[ServerProcess]:
    flags = ("--model", str(detector_file), "--provider", "cpu", "--state-dir", str(page_files))
    async with ServerProcess(page_files / "call.log", *flags) as server:
        yield server


@pytest.fixture
async def server(one_server: ServerProcess) -> AsyncIterator[ServerProcess]:
    """The server of all these tests, without a call."""
    yield one_server
    await one_server.end_calls()


async def test_boxes_and_numbers_come_back_with_the_picture(
    browser: Browser, server: ServerProcess, camera_clip: Path
) -> None:
    async with open_page(browser, clip=camera_clip) as page:
        await start_call(page, server.url)
        await page.wait_for(box_is_drawn("person"))
        await page.wait_for(box_is_drawn("cat"))
        await page.wait_for("document.querySelector('#objects').innerText.includes('person')")

        for selector in ("#age-p50", "#journey-server", "#fps-in", "#fps-out", "#fps-shown"):
            await page.wait_for(f"/[0-9]/.test(document.querySelector('{selector}').innerText)")
        await page.wait_for("document.querySelectorAll('#bar rect').length >= 8")
        assert "infer" in await page.text("#legend")
        assert (await page.text("#fact-model")).startswith("always · 64")
        assert "cpu" in await page.text("#fact-provider")
        assert (await page.text("#fact-video")).split(" · ")[0] in ("H264", "VP8")
        assert await page.text("#status") == "Live"
        await assert_clean(page)


async def test_a_video_file_is_played_into_the_call(
    browser: Browser, server: ServerProcess, video_file: Path
) -> None:
    async with open_page(browser, camera="none") as page:
        await page.goto(server.url)
        await page.click("#source input[value=file]")
        await page.choose_file("#file", video_file)
        await page.wait_for(call_is("live"))
        await page.wait_for(box_is_drawn("person"))
        assert await page.text("#file-name") == video_file.name
        await assert_clean(page)


async def test_settings_change_the_running_call(
    browser: Browser, server: ServerProcess, camera_clip: Path
) -> None:
    async with open_page(browser, clip=camera_clip) as page:
        await start_call(page, server.url)
        await page.wait_for(box_is_drawn("cat"))

        await page.evaluate(set_slider("#confidence", 75))  # the cat has 60 %
        await page.wait_for(box_is_gone("cat"))
        assert await page.evaluate(box_is_drawn("person"))
        await page.evaluate(set_slider("#confidence", 30))
        await page.wait_for(box_is_drawn("cat"))

        await page.click("#classes-open")
        await page.click("#classes-list input[value=person]")
        await page.wait_for(box_is_gone("person"))
        assert await page.text("#classes-label") == "cat"

        await page.click("#mode input[value=smooth]")
        await page.wait_for(f"{SESSION}.then((session) => session.options.mode === 'smooth')")
        await page.wait_for(box_is_drawn("cat"))
        assert (await page.evaluate(SESSION))["options"]["classes"] == ["cat"]
        await assert_clean(page)


async def test_in_data_the_picture_comes_back_untouched_and_the_page_draws(
    browser: Browser, server: ServerProcess, camera_clip: Path
) -> None:
    async with open_page(browser, clip=camera_clip) as page:
        await start_call(page, server.url)
        await page.wait_for(box_is_drawn("person"))
        await page.click("#mode input[value=data]")
        await page.wait_for(f"{SESSION}.then((s) => s.peer.outgoing[0].frames_forwarded > 5)")
        await page.wait_for(box_is_gone("person"))
        await page.wait_for(drawn_by_page("person"))
        assert await page.evaluate(drawn_by_page("cat"))
        await page.click("#mode input[value=exact]")
        await page.wait_for(box_is_drawn("person"))
        assert await page.evaluate("document.querySelector('#boxes').hidden")
        await assert_clean(page)


async def test_settings_outlive_the_visit(
    chromium: Browser, server: ServerProcess, camera_clip: Path
) -> None:
    async with open_page(chromium, clip=camera_clip) as page:
        await page.goto(server.url)
        await page.evaluate(set_slider("#confidence", 85))
        await page.click("#mode input[value=smooth]")
        await page.click("#local-view input[value=hidden]")
        await start_call(page, server.url)
        options = (await page.evaluate(SESSION))["options"]
        assert (options["mode"], options["confidence"]) == ("smooth", 0.85)
        assert await page.evaluate("document.body.dataset.local") == "hidden"


async def test_the_first_visit_starts_with_the_servers_defaults(
    chromium: Browser, tmp_path: Path
) -> None:
    flags = ("--confidence", "0.6", "--mode", "smooth")
    async with ServerProcess(tmp_path / "log", *flags) as server, open_page(chromium) as page:
        await page.goto(server.url)
        await page.wait_for("document.querySelector('#confidence').value === '60'")
        assert await page.evaluate("document.querySelector('#mode input[value=smooth]').checked")
        assert await page.text("#confidence-value") == "60 %"


async def test_a_screen_is_shared_into_the_call(chromium: Browser, server: ServerProcess) -> None:
    async with open_page(chromium) as page:
        await page.goto(server.url)
        await page.click("#source input[value=screen]")
        await page.click("#start")
        await page.wait_for(call_is("live"))
        await page.wait_for("document.querySelector('#remote').videoWidth > 0")
        await assert_clean(page)


async def test_size_changes_without_a_new_call(
    chromium: Browser, server: ServerProcess, video_file: Path
) -> None:
    async with open_page(chromium) as page:
        await start_call(page, server.url)
        before = await page.evaluate(SESSION)
        await page.evaluate(
            "(() => { const s = document.querySelector('#height'); s.value = '720';"
            " s.dispatchEvent(new Event('change')); })()"
        )
        # By shape: a busy browser may send fewer pixels than it was asked for.
        await page.wait_for(shape_is("#local", 16 / 9))
        await page.wait_for(shape_is("#remote", 16 / 9))
        await page.click("#source input[value=file]")
        await page.choose_file("#file", video_file)
        await page.wait_for(shape_is("#remote", 4 / 3))
        assert (await page.evaluate(SESSION))["session"] == before["session"]
        await assert_clean(page)


async def test_stop_ends_the_session_on_the_server(
    chromium: Browser, server: ServerProcess, camera_clip: Path
) -> None:
    async with open_page(chromium, clip=camera_clip) as page:
        await start_call(page, server.url)
        await page.click("#start")
        await page.wait_for(call_is("idle"))
        await page.wait_for(f"{SESSIONS}.then((count) => count === 0)")
        assert await page.evaluate("document.querySelector('#local').srcObject") is None
        await assert_clean(page)


async def test_keyboard_alone_makes_and_steers_a_call(
    browser: Browser, server: ServerProcess, camera_clip: Path
) -> None:
    focused = "document.activeElement && document.activeElement.id"
    async with open_page(browser, clip=camera_clip) as page:
        await page.goto(server.url)

        async def tab_to(wanted: str) -> None:
            for _ in range(25):
                await page.press("Tab")
                if await page.evaluate(focused) == wanted:
                    return
            pytest.fail(f"Tab never reached #{wanted}")

        await tab_to("start")
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        await page.press("Enter")
        await page.wait_for(call_is("live"))

        await tab_to("confidence")
        before = await page.evaluate("Number(document.querySelector('#confidence').value)")
        await page.press("ArrowRight")
        assert await page.text("#confidence-value") == f"{before + 1} %"
        await page.wait_for(
            f"{SESSION}.then(({{options}}) =>"
            f" Math.abs(options.confidence - {before + 1} / 100) < 1e-6)"
        )

        await tab_to("classes-open")
        await page.press("Enter")
        assert await page.evaluate(focused) == "classes-search"
        for letter in "cat":
            await page.press(letter)
        await page.wait_for("document.querySelectorAll('#classes-list li').length === 1")
        await page.press("Escape")
        assert await page.evaluate("document.querySelector('#classes-panel').hidden")
        assert await page.evaluate(focused) == "classes-open"
        await assert_clean(page)


async def test_theme_follows_the_choice_and_is_kept(
    chromium: Browser, server: ServerProcess
) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    async with open_page(chromium) as page:
        await page.goto(server.url)
        before = await page.evaluate(paper)
        await page.click("#theme")
        chosen = await page.evaluate(paper)
        assert chosen != before
        await page.goto(server.url)
        assert await page.evaluate(paper) == chosen
        await assert_clean(page)


async def test_a_phone_needs_no_sideways_scrolling(
    browser: Browser, server: ServerProcess, camera_clip: Path
) -> None:
    async with open_page(browser, clip=camera_clip) as page:
        await page.set_viewport(390, 844)
        await start_call(page, server.url)
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert await page.evaluate(
            "[...document.querySelectorAll('video')]"
            ".every((video) => video.hasAttribute('playsinline') && video.muted)"
        )
        await assert_clean(page)
