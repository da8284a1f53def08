"""Real browsers, spoken to over one WebSocket each: Chromium by its DevTools protocol, Firefox by
WebDriver BiDi. Nothing is installed for it but the browsers themselves. Benches and tests use it.

A `Page` evaluates expressions, presses keys, clicks and keeps what went wrong in the page. Every
call has a deadline. `open_page` starts a browser with a fresh profile and ends it.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from bench.errors import UsageError

# What each browser is called on the PATH, best first.
COMMANDS = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "firefox": ("firefox-esr", "firefox"),
}
DEADLINE_S = 40.0
START_DEADLINE_S = 90.0
STOP_DEADLINE_S = 5.0
POLL_MS = 50
CLICKS_AT_MOST = 3
LISTENING = re.compile(r"(DevTools|WebDriver BiDi) listening on (ws://\S+)")

# The camera a browser offers: one that is granted, one that is refused, or none at all.
Camera = Literal["granted", "refused", "none"]

# Browsers report policy violations in ways of their own; the event is the same in both.
PRELUDE = """
window.violations = [];
document.addEventListener('securitypolicyviolation', (event) => {
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`);
});
"""

CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--remote-debugging-port=0",
)
FIREFOX_PREFERENCES: dict[str, bool | int | str] = {
    "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "media.autoplay.default": 0,
    "media.gmp-manager.updateEnabled": False,
    "media.peerconnection.ice.loopback": True,
    "media.peerconnection.ice.obfuscate_host_addresses": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}
FIREFOX_CAMERA: dict[Camera, dict[str, bool | int | str]] = {
    "granted": {
        "media.navigator.streams.fake": True,
        "media.navigator.permission.disabled": True,
    },
    "refused": {"media.navigator.streams.fake": True, "permissions.default.camera": 2},
    "none": {"media.navigator.permission.disabled": True},
}
FIREFOX_KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "ArrowRight": "\ue014"}
CHROMIUM_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "ArrowRight": 39}


class BrowserError(Exception):
    """The browser answered with an error, or not at all."""


class Wire:
    """JSON commands with ids over a WebSocket, and the events in between. On the loop."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listeners: list[Callable[[str, dict[str, Any]], None]] = []
        self._reader = asyncio.create_task(self._read(), name="browser wire")

    def listen(self, listener: Callable[[str, dict[str, Any]], None]) -> None:
        """Call back with the name and parameters of every event."""
        self._listeners.append(listener)

    async def call(self, method: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
        """One command; `more` goes beside the parameters (a DevTools session, for instance)."""
        number = next(self._ids)
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **more})
        try:
            async with asyncio.timeout(DEADLINE_S):
                message: dict[str, Any] = await answer
        except TimeoutError:
            raise BrowserError(f"{method}: no answer in {DEADLINE_S:.0f} s") from None
        finally:
            del self._waiting[number]
        if "error" in message:
            raise BrowserError(f"{method}: {message.get('message') or message['error']}")
        result: dict[str, Any] = message.get("result", {})
        return result

    async def close(self) -> None:
        await self._socket.close()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            content = json.loads(message.data)
            answer = self._waiting.get(content.get("id", 0))
            if answer is not None and not answer.done():
                answer.set_result(content)
            elif "method" in content:
                for listener in self._listeners:
                    listener(content["method"], content.get("params", {}))
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(BrowserError("the browser hung up"))


class Page(ABC):
    """One page in one browser."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.process_id = 0
        """Of the browser's main process."""
        self.errors: list[str] = []
        """Uncaught exceptions and what the page or browser wrote to the console as an error."""
        wire.listen(self._on_event)

    @abstractmethod
    async def goto(self, url: str) -> None: ...

    @abstractmethod
    async def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression; a promise is awaited."""

    @abstractmethod
    async def press(self, key: str, *, shift: bool = False) -> None:
        """A real key press: one character, or Tab, Enter, Escape, ArrowRight."""

    @abstractmethod
    async def click_at(self, x: float, y: float) -> None: ...

    @abstractmethod
    async def choose_file(self, selector: str, path: Path) -> None: ...

    @abstractmethod
    async def set_viewport(self, width: int, height: int) -> None: ...

    @abstractmethod
    async def screenshot(self) -> bytes:
        """PNG of what is in view."""

    @abstractmethod
    def _on_event(self, name: str, parameters: dict[str, Any]) -> None: ...

    async def click(self, selector: str) -> None:
        """A real click on the middle of an element, brought into view and at rest there; once more
        where the page moved it away from under the pointer meanwhile."""
        for _ in range(CLICKS_AT_MOST):
            x, y = await self.evaluate(
                f"""(async () => {{
                    const element = document.querySelector({json.dumps(selector)});
                    const middle = () => {{
                        element.scrollIntoView({{block: 'nearest'}});
                        const box = element.getBoundingClientRect();
                        return [box.x + box.width / 2, box.y + box.height / 2];
                    }};
                    let [before, now] = ['', middle()];
                    while (String(before) !== String(now)) {{
                        await new Promise((resolve) => setTimeout(resolve, {POLL_MS}));
                        [before, now] = [now, middle()];
                    }}
                    window.clickArrived = false;
                    const arrived = () => {{ window.clickArrived = true; }};
                    element.addEventListener('click', arrived, {{once: true, capture: true}});
                    return now;
                }})()"""
            )
            await self.click_at(x, y)
            # A click may have led to another page, which knows nothing of it.
            if await self.evaluate("window.clickArrived !== false"):
                return
        raise BrowserError(f"{selector}: does not stay under the pointer")

    async def text(self, selector: str) -> str:
        """What is written in an element, as shown."""
        return str(await self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def wait_for(self, condition: str, deadline_s: float = DEADLINE_S) -> Any:
        """The first truthy value of an expression, or BrowserError with the page's state."""
        value = await self.evaluate(
            f"""(async () => {{
                const until = performance.now() + {1000 * min(deadline_s, DEADLINE_S - 2)};
                for (;;) {{
                    const value = await ({condition});
                    if (value || performance.now() > until) return value;
                    await new Promise((resolve) => setTimeout(resolve, {POLL_MS}));
                }}
            }})()"""
        )
        if not value:
            shown = await self.evaluate("document.body.innerText")
            raise BrowserError(f"never came true: {condition}\nerrors: {self.errors}\n{shown}")
        return value

    async def violations(self) -> list[str]:
        """What the page's content security policy stopped."""
        return list(await self.evaluate("window.violations"))


class ChromiumPage(Page):
    """By the DevTools protocol, in a flat session with the page's target."""

    _session = ""

    async def attach(self, camera: Camera) -> None:
        """Open the page and start listening to it."""
        target = await self._wire.call("Target.createTarget", {"url": "about:blank"})
        attached = await self._wire.call(
            "Target.attachToTarget", {"targetId": target["targetId"], "flatten": True}
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self._call(f"{domain}.enable")
        await self._call("Page.addScriptToEvaluateOnNewDocument", source=PRELUDE)
        if camera == "refused":
            await self._wire.call(
                "Browser.setPermission",
                {"permission": {"name": "camera"}, "setting": "denied"},
            )

    async def goto(self, url: str) -> None:
        await self._call("Page.navigate", url=url)
        await self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def evaluate(self, expression: str) -> Any:
        answer = await self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            thrown = answer["exceptionDetails"].get("exception", {})
            raise BrowserError(str(thrown.get("description") or thrown or answer))
        return answer["result"].get("value")

    async def press(self, key: str, *, shift: bool = False) -> None:
        code = CHROMIUM_KEYS.get(key, ord(key[0].upper()))
        text = "\r" if key == "Enter" else key if len(key) == 1 else ""
        common = {
            "key": key,
            "code": "Space" if key == " " else key if len(key) > 1 else f"Key{key.upper()}",
            "windowsVirtualKeyCode": code,
            "modifiers": 8 if shift else 0,
        }
        await self._call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self._call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def click_at(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            await self._call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def choose_file(self, selector: str, path: Path) -> None:
        found = await self._call(
            "Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})"
        )
        await self._call(
            "DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"]
        )

    async def set_viewport(self, width: int, height: int) -> None:
        phone = width < 600
        await self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        await self._call("Emulation.setTouchEmulationEnabled", enabled=phone)

    async def screenshot(self) -> bytes:
        return base64.b64decode((await self._call("Page.captureScreenshot"))["data"])

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self._wire.call(method, parameters, sessionId=self._session)

    def _on_event(self, name: str, parameters: dict[str, Any]) -> None:
        if name == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details)))
        elif name == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.errors.append(" ".join(str(part.get("value")) for part in parameters["args"]))
        elif name == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url')}")


class FirefoxPage(Page):
    """By WebDriver BiDi, in the first tab."""

    _context = ""

    async def attach(self) -> None:
        await self._wire.call("session.new", {"capabilities": {}})
        await self._wire.call("session.subscribe", {"events": ["log.entryAdded"]})
        await self._wire.call(
            "script.addPreloadScript", {"functionDeclaration": f"() => {{{PRELUDE}}}"}
        )
        # In a window of its own the page has the focus; in the first one the address bar has.
        made = await self._wire.call("browsingContext.create", {"type": "window"})
        self._context = made["context"]
        await self._wire.call("browsingContext.activate", {"context": self._context})

    async def goto(self, url: str) -> None:
        await self._wire.call(
            "browsingContext.navigate", {"context": self._context, "url": url, "wait": "complete"}
        )

    async def evaluate(self, expression: str) -> Any:
        answer = await self._evaluate(
            f"(async () => JSON.stringify((await ({expression})) ?? null))()"
        )
        return json.loads(answer["value"])

    async def press(self, key: str, *, shift: bool = False) -> None:
        value = FIREFOX_KEYS.get(key, key)
        held = ["\ue008"] if shift else []
        actions = [{"type": "keyDown", "value": each} for each in (*held, value)]
        actions += [{"type": "keyUp", "value": each} for each in (value, *held)]
        await self._perform({"type": "key", "id": "keyboard", "actions": actions})

    async def click_at(self, x: float, y: float) -> None:
        actions: list[dict[str, Any]] = [
            {"type": "pointerMove", "x": round(x), "y": round(y)},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        await self._perform({"type": "pointer", "id": "mouse", "actions": actions})

    async def choose_file(self, selector: str, path: Path) -> None:
        node = await self._evaluate(f"document.querySelector({json.dumps(selector)})")
        await self._wire.call(
            "input.setFiles",
            {
                "context": self._context,
                "element": {"sharedId": node["sharedId"]},
                "files": [str(path)],
            },
        )

    async def set_viewport(self, width: int, height: int) -> None:
        await self._wire.call(
            "browsingContext.setViewport",
            {
                "context": self._context,
                "viewport": {"width": width, "height": height},
                "devicePixelRatio": 2 if width < 600 else 1,
            },
        )

    async def screenshot(self) -> bytes:
        answer = await self._wire.call(
            "browsingContext.captureScreenshot", {"context": self._context}
        )
        return base64.b64decode(answer["data"])

    async def _evaluate(self, expression: str) -> dict[str, Any]:
        answer = await self._wire.call(
            "script.evaluate",
            {
                "expression": expression,
                "target": {"context": self._context},
                "awaitPromise": True,
                "userActivation": True,
            },
        )
        if answer["type"] == "exception":
            raise BrowserError(str(answer["exceptionDetails"]["text"]))
        result: dict[str, Any] = answer["result"]
        return result

    async def _perform(self, source: dict[str, Any]) -> None:
        await self._wire.call(
            "input.performActions", {"context": self._context, "actions": [source]}
        )

    def _on_event(self, name: str, parameters: dict[str, Any]) -> None:
        if name == "log.entryAdded" and parameters["level"] == "error":
            self.errors.append(str(parameters["text"]))


@dataclass(frozen=True, slots=True)
class Browser:
    """A browser on this machine."""

    name: Literal["chromium", "firefox"]
    path: str


def find_browser(name: Literal["chromium", "firefox"]) -> Browser | None:
    """The browser of that name on this machine."""
    found = (shutil.which(command) for command in COMMANDS[name])
    path = next((path for path in found if path), None)
    return None if path is None else Browser(name, path)


def wanted_browser(name: Literal["chromium", "firefox"]) -> Browser:
    """As installed; raises `UsageError` where it is not."""
    browser = find_browser(name)
    if browser is None:
        raise UsageError(f"--browser: {name} is not installed")
    return browser


async def version_of(page: Page, browser: Browser) -> str:
    """As it tells servers: the last word but one of Chromium's, the last of Firefox's."""
    place = -1 if browser.name == "firefox" else -2
    return str(await page.evaluate(f"navigator.userAgent.split(' ').at({place})"))


@contextlib.asynccontextmanager
async def open_page(
    browser: Browser,
    *,
    camera: Camera = "granted",
    clip: Path | None = None,
    flags: Sequence[str] = (),
    preferences: Mapping[str, bool | int | str] | None = None,
) -> AsyncIterator[Page]:
    """A page in a fresh browser, which is gone afterwards.

    `clip` is what Chromium's camera plays (.y4m or .mjpeg); Firefox's camera has a pattern of
    its own and takes none. `flags` are more of Chromium's, `preferences` more of Firefox's.
    """
    with tempfile.TemporaryDirectory(prefix="page-", ignore_cleanup_errors=True) as folder:
        profile = Path(folder)
        command = (
            chromium_command(browser.path, profile, camera, clip, flags)
            if browser.name == "chromium"
            else firefox_command(browser.path, profile, camera, preferences or {})
        )
        async with contextlib.AsyncExitStack() as stack:
            url, process_id = await stack.enter_async_context(_running(command))
            client = await stack.enter_async_context(aiohttp.ClientSession())
            socket = await client.ws_connect(url, max_msg_size=0)
            wire = Wire(socket)
            stack.push_async_callback(wire.close)
            page: ChromiumPage | FirefoxPage
            if browser.name == "chromium":
                page = ChromiumPage(wire)
                await page.attach(camera)
            else:
                page = FirefoxPage(wire)
                await page.attach()
            page.process_id = process_id
            yield page


def chromium_command(
    path: str, profile: Path, camera: Camera, clip: Path | None, flags: Sequence[str] = ()
) -> tuple[str, ...]:
    all_flags = [*CHROMIUM_FLAGS, f"--user-data-dir={profile}", *flags]
    if camera != "none":
        all_flags.append("--use-fake-device-for-media-stream")
    if camera == "granted":
        all_flags.append("--use-fake-ui-for-media-stream")
    if clip is not None:
        all_flags.append(f"--use-file-for-fake-video-capture={clip}")
    return (path, *all_flags, "about:blank")


def firefox_command(
    path: str, profile: Path, camera: Camera, preferences: Mapping[str, bool | int | str]
) -> tuple[str, ...]:
    chosen = {**FIREFOX_PREFERENCES, **FIREFOX_CAMERA[camera], **preferences}
    lines = [f"user_pref({json.dumps(k)}, {json.dumps(v)});\n" for k, v in chosen.items()]
    (profile / "user.js").write_text("".join(lines))
    return (
        path,
        "--headless",
        "--no-remote",
        "--profile",
        str(profile),
        "--remote-debugging-port=0",
        "about:blank",
    )


@contextlib.asynccontextmanager
async def _running(command: tuple[str, ...]) -> AsyncIterator[tuple[str, int]]:
    """The browser's process; yields the address of its WebSocket and the process id."""
    # A pipe of our own: what a browser leaves running holds its end, and the loop could not be
    # closed while the one that a subprocess brings waits for that.
    read_end, write_end = os.pipe()
    log = asyncio.StreamReader(limit=1024 * 1024)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(log), os.fdopen(read_end, "rb")
    )
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.DEVNULL, stderr=write_end
        )
    finally:
        os.close(write_end)
    drain: asyncio.Task[None] | None = None
    try:
        address = await _address(log)
        # A browser that talks more than anyone reads would block.
        drain = asyncio.create_task(_drain(log), name="browser's log")
        yield address, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_DEADLINE_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if drain is not None:
            drain.cancel()
            await asyncio.gather(drain, return_exceptions=True)
        transport.close()
        # Closing is told to the protocol in the loop's next round.
        await asyncio.sleep(0)


async def _address(log: asyncio.StreamReader) -> str:
    """Where the browser listens, as it says itself."""
    said = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_DEADLINE_S):
            async for line in log:
                said.append(line.decode(errors="replace"))
                found = LISTENING.search(said[-1])
                if found:
                    return found.group(2) + ("" if found.group(1) == "DevTools" else "/session")
    raise BrowserError(f"the browser did not start:\n{''.join(said)}")


async def _drain(log: asyncio.StreamReader) -> None:
    while await log.read(65536):
        pass
