"""The page's arithmetic, imported from the served modules into a real page."""

from pathlib import Path

import pytest

from bench.browsers.driver import Browser, open_page
from tests.page.making import ServerProcess

pytestmark = pytest.mark.browser


CASES: tuple[tuple[str, object], ...] = (
    # The pause doubles, half of it by chance, and stays below its bound.
    (
        "const { pauseMs } = await import('/web/call.js');"
        "return [pauseMs(0, 0), pauseMs(0, 1), pauseMs(3, 0), pauseMs(3, 1), pauseMs(60, 1)];",
        [250, 500, 2000, 4000, 15000],
    ),
    # The quickest exchange is trusted: the slow one's error is bigger.
    (
        "const { ServerClock } = await import('/web/clock.js');"
        "const clock = new ServerClock();"
        "clock.add(0, 100, 1070); clock.add(200, 202, 1201); clock.add(300, 380, 1350);"
        "return [clock.rttMs, clock.toPageMs(1300)];",
        [2, 300],
    ),
    (
        "const { ServerClock } = await import('/web/clock.js');"
        "const clock = new ServerClock();"
        "return [clock.known, Number.isNaN(clock.toPageMs(5))];",
        [False, True],
    ),
    # The constant between timestamps is found among wrong votes, and over the wrap of 2^32.
    (
        "const { Pairing } = await import('/web/latency.js');"
        "const pairing = new Pairing();"
        "for (let i = 0; i < 8; i += 1) {"
        "  const sent = (4294960000 + i * 3000) % 2 ** 32;"
        "  pairing.vote((sent + 777) % 2 ** 32, sent);"
        "  if (i % 3 === 0) pairing.vote((sent + 777) % 2 ** 32, sent + 3000 + i);"
        "}"
        "return [pairing.toMessageRtp(1777), pairing.toMessageRtp(0)];",
        [1000, 2**32 - 777],
    ),
    (
        "const { Pairing } = await import('/web/latency.js');"
        "const pairing = new Pairing();"
        "for (let i = 0; i < 4; i += 1) pairing.vote(5, 3);"
        "return pairing.toMessageRtp(7);",
        None,
    ),
    # Without capture times: the quickest arrival less the guess; a queue later changes nothing.
    (
        "const { CaptureClock } = await import('/web/latency.js');"
        "const captures = new CaptureClock();"
        "for (let i = 0; i < 60; i += 1) {"
        "  const rtp = (2 ** 32 - 9000 + i * 3000) % 2 ** 32;"
        "  const late = i < 30 ? 10 : 90;"
        "  captures.addArrival(rtp, 1000 + (i * 100) / 3 + late, 10);"
        "}"
        "return [captures.measured(3000),"
        " Math.round(captures.captureMs((2 ** 32 - 9000 + 59 * 3000) % 2 ** 32, 3000))];",
        [False, round(1000 + 5900 / 3)],
    ),
    # With capture times of the preview: those, although the guess is 4 ms off.
    (
        "const { CaptureClock } = await import('/web/latency.js');"
        "const captures = new CaptureClock();"
        "for (let i = 0; i < 60; i += 1) {"
        "  captures.addPreview(1000 + (i * 100) / 3);"
        "  captures.addArrival(5000 + i * 3000, 1000 + (i * 100) / 3 + 14, 10);"
        "}"
        "return [captures.measured(3000), Math.round(captures.captureMs(5000 + 177000, 3000))];",
        [True, round(1000 + 5900 / 3)],
    ),
    (
        "const { Window } = await import('/web/latency.js');"
        "const window = new Window(100);"
        "for (let i = 0; i < 200; i += 1) window.add(i, i);"
        "window.add(200, NaN);"
        "return [window.count(199), window.median(199), window.count(1000)];",
        [101, 149, 0],
    ),
    # The start bit rate goes to every video codec, with or without parameters, and to no other.
    (
        "const { withStartBitrate } = await import('/web/peer.js');"
        "return withStartBitrate(['a=rtpmap:102 H264/90000', 'a=fmtp:102 packetization-mode=1',"
        " 'a=rtpmap:97 rtx/90000', 'a=fmtp:97 apt=102', 'a=rtpmap:96 VP8/90000', '']"
        ".join('\\r\\n'),"
        " 1000).split('\\r\\n');",
        [
            "a=rtpmap:102 H264/90000",
            "a=fmtp:102 packetization-mode=1;x-google-start-bitrate=1000",
            "a=rtpmap:97 rtx/90000",
            "a=fmtp:97 apt=102",
            "a=rtpmap:96 VP8/90000",
            "a=fmtp:96 x-google-start-bitrate=1000",
            "",
        ],
    ),
    # A gap in what is known is a gap in the line.
    (
        "const { sparkPaths } = await import('/web/sparkline.js');"
        "const known = { p50: 50, p95: 75 }; const gap = { p50: NaN, p95: NaN };"
        "const { line } = sparkPaths([known, known, gap, known], 4, 75);"
        "return (line.match(/M/g) ?? []).length;",
        2,
    ),
    (
        "const { sparkPaths } = await import('/web/sparkline.js');"
        "return sparkPaths([], 120, 75).line;",
        "",
    ),
    # Settings of another page version are taken one by one.
    (
        "const { checked, DEFAULTS } = await import('/web/settings.js');"
        "const taken = checked({ height: 720, confidence: 7, mode: 'fast', classes: ['cat', 3] });"
        "return [taken.height, taken.confidence === DEFAULTS.confidence, taken.mode,"
        " taken.classes, checked('x').source];",
        [720, True, "exact", None, "camera"],
    ),
)


async def test_modules_compute_what_they_say(chromium: Browser, tmp_path: Path) -> None:
    async with ServerProcess(tmp_path / "log") as server, open_page(chromium) as page:
        await page.goto(server.url)
        for expression, expected in CASES:
            assert await page.evaluate(f"(async () => {{{expression}}})()") == expected, expression
