"""What the page says, and does, when a call cannot be or breaks."""

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bench.browsers.driver import Browser, Page, open_page
from tests.page.looking import assert_clean, box_is_drawn, box_is_gone, call_is, start_call
from tests.page.making import ServerProcess

pytestmark = pytest.mark.browser

# Takes a place on the server without ever connecting; gives the session's id.
OCCUPY = """(async () => {
  const connection = new RTCPeerConnection();
  connection.addTransceiver('video', { direction: 'sendrecv' });
  await connection.setLocalDescription();
  const body = JSON.stringify({ sdp: connection.localDescription.sdp, type: 'offer' });
  const headers = { 'Content-Type': 'application/json' };
  const reply = await fetch('/offer', { method: 'POST', headers, body });
  const { session } = await reply.json();
  connection.close();
  return session;
})()"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_server(page_files: Path) -> AsyncIterator[ServerProcess]:
    state = ("--state-dir", str(page_files / "failures"))
    async with ServerProcess(page_files / "failures.log", *state) as server:
        yield server


@pytest.fixture
async def server(one_server: ServerProcess) -> AsyncIterator[ServerProcess]:
    """A server that several tests have in turn, without a call. It finds nothing."""
    yield one_server
    await one_server.end_calls()


async def message_of_start(page: Page, url: str, state: str) -> str:
    """Press Start and read what the page says once it is in that state."""
    await page.goto(url)
    await page.click("#start")
    await page.wait_for(call_is(state))
    assert await page.evaluate("!document.querySelector('#message').hidden")
    return await page.text("#message-text")


async def test_a_refused_camera_is_explained(browser: Browser, server: ServerProcess) -> None:
    async with open_page(browser, camera="refused") as page:
        message = await message_of_start(page, server.url, "failed")
        assert "The camera was refused" in message
        assert "address bar" in message
        assert await page.text("#message-action") == "Try again"
        await assert_clean(page)


async def test_a_missing_camera_is_explained(browser: Browser, server: ServerProcess) -> None:
    async with open_page(browser, camera="none") as page:
        message = await message_of_start(page, server.url, "failed")
        assert "No camera found" in message
        assert "video file" in message
        await assert_clean(page)


async def test_an_insecure_page_is_explained_and_still_plays_files(
    chromium: Browser, log: Path, video_file: Path
) -> None:
    host = address_of_this_machine()
    async with (
        ServerProcess(log, "--auth", "off", host=host) as server,
        open_page(chromium) as page,
    ):
        message = await message_of_start(page, server.url, "failed")
        assert "needs a secure page" in message
        assert "localhost" in message
        await page.click("#source input[value=file]")
        await page.choose_file("#file", video_file)
        await page.wait_for(call_is("live"))


async def test_a_locked_server_is_explained(chromium: Browser, log: Path) -> None:
    async with ServerProcess(log, "--auth", "on") as server, open_page(chromium) as page:
        message = await message_of_start(page, server.url, "failed")
        assert "This server is locked" in message


async def test_a_file_that_is_no_video_is_explained(
    chromium: Browser, server: ServerProcess, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.webm"
    broken.write_text("not a video")
    async with open_page(chromium) as page:
        await page.goto(server.url)
        await page.click("#source input[value=file]")
        await page.choose_file("#file", broken)
        await page.wait_for(call_is("failed"))
        assert "cannot play that file" in await page.text("#message-text")


async def test_no_detector_is_said_and_the_picture_comes_back_anyway(
    browser: Browser, server: ServerProcess
) -> None:
    async with open_page(browser) as page:
        await start_call(page, server.url)
        assert "No detector is loaded" in await page.text("#ribbon")
        assert "none" in await page.text("#fact-model")
        await page.wait_for(box_is_gone("person"))
        await page.wait_for("/[0-9]/.test(document.querySelector('#age-p50').innerText)")
        await page.wait_for("/[0-9]/.test(document.querySelector('#fps-out').innerText)")
        await assert_clean(page)


async def test_a_full_server_counts_down_and_the_call_follows(browser: Browser, log: Path) -> None:
    async with (
        ServerProcess(log, "--max-sessions", "1", "--connect-timeout-s", "60") as server,
        open_page(browser) as page,
    ):
        await page.goto(server.url)
        occupant = await page.evaluate(OCCUPY)
        await page.click("#start")
        await page.wait_for(call_is("waiting"))
        assert "The server is full" in await page.text("#message-text")
        assert "Trying again" in await page.text("#countdown")
        await page.evaluate(f"fetch('/sessions/{occupant}', {{ method: 'DELETE' }}).then(() => 1)")
        await page.click("#message-action")
        await page.wait_for(call_is("live"))
        assert await page.evaluate("document.querySelector('#message').hidden")


async def test_the_call_comes_back_with_its_settings_when_the_server_does(
    browser: Browser, log: Path, detector_file: Path, camera_clip: Path
) -> None:
    flags = ("--model", str(detector_file), "--provider", "cpu")
    async with ServerProcess(log, *flags) as server, open_page(browser, clip=camera_clip) as page:
        await page.goto(server.url)
        await page.click("#mode input[value=smooth]")
        await start_call(page, server.url)
        await page.wait_for(box_is_drawn("person"))

        await server.stop()
        await page.wait_for(call_is("waiting"))
        await page.wait_for(
            "document.querySelector('#message-title').innerText === 'The server does not answer'"
        )
        assert await page.evaluate("document.querySelector('#local').srcObject.active")

        await server.start()
        await page.wait_for(call_is("live"))
        await page.wait_for(box_is_drawn("person"))
        options = await page.evaluate(
            "fetch('/api/stats').then((reply) => reply.json()).then((s) => s.sessions[0].options)"
        )
        assert options["mode"] == "smooth"
        assert await page.violations() == []


async def test_stop_ends_the_waiting_for_a_server(chromium: Browser, log: Path) -> None:
    async with ServerProcess(log) as server, open_page(chromium) as page:
        await start_call(page, server.url)
        await server.stop()
        await page.wait_for(call_is("waiting"))
        await page.click("#message-other")
        await page.wait_for(call_is("idle"))
        assert await page.evaluate("document.querySelector('#local').srcObject") is None


async def test_a_refusal_names_what_the_server_said(
    chromium: Browser, server: ServerProcess
) -> None:
    async with open_page(chromium) as page:
        await page.goto(server.url)
        # A later page, or a person with developer tools, may keep what this server does not take.
        await page.evaluate(
            "localStorage.setItem('sightline.settings', JSON.stringify({ classes: [''] }))"
        )
        message = await message_of_start(page, server.url, "failed")
        assert "The server refused the call" in message
        assert "options.classes" in message


def address_of_this_machine() -> str:
    """An address that is not loopback, so that browsers call the page insecure."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address; nothing is sent
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])
