"""Browsers publish by WHIP and watch by WHEP, with nothing but what every browser has."""

from pathlib import Path

import pytest

from bench.browsers.driver import Browser, open_page
from tests.gateway.publishing import publishing, write_pair
from tests.page.looking import box_is_drawn
from tests.page.making import ServerProcess

pytestmark = pytest.mark.browser

EXCHANGE = """
async function exchange(peer, path) {
  await peer.setLocalDescription(await peer.createOffer());
  const reply = await fetch(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/sdp' },
    body: peer.localDescription.sdp,
  });
  if (reply.status !== 201) throw new Error(`${reply.status} ${await reply.text()}`);
  await peer.setRemoteDescription({ type: 'answer', sdp: await reply.text() });
  return reply.headers.get('Location');
}
"""
PUBLISH = f"""
(async () => {{
  {EXCHANGE}
  const peer = new RTCPeerConnection();
  const camera = await navigator.mediaDevices.getUserMedia({{
    video: {{ width: 640, height: 480 }},
  }});
  peer.addTransceiver(camera.getVideoTracks()[0], {{ direction: 'sendonly', streams: [camera] }});
  window.publishing = peer;
  return exchange(peer, '/whip/STREAM');
}})()
"""
# The extension for the time of capture is off in Chromium until it is asked for.
WATCH = f"""
(async () => {{
  {EXCHANGE}
  const peer = new RTCPeerConnection();
  const transceiver = peer.addTransceiver('video', {{ direction: 'recvonly' }});
  if (transceiver.getHeaderExtensionsToNegotiate) {{
    const wanted = transceiver.getHeaderExtensionsToNegotiate();
    for (const extension of wanted) {{
      if (extension.uri.endsWith('abs-capture-time')) extension.direction = 'sendrecv';
    }}
    transceiver.setHeaderExtensionsToNegotiate(wanted);
  }}
  window.messages = [];
  const channel = peer.createDataChannel('detections', {{ ordered: false, maxRetransmits: 0 }});
  channel.onmessage = (event) => window.messages.push(JSON.parse(event.data));
  const video = document.querySelector('#remote');
  peer.ontrack = (event) => {{
    video.srcObject = new MediaStream([event.track]);
    video.play();
  }};
  window.shown = {{}};
  const note = (now, frame) => {{
    window.shown = frame;
    video.requestVideoFrameCallback(note);
  }};
  if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(note);
  window.watching = peer;
  return exchange(peer, '/whep/STREAM');
}})()
"""


@pytest.fixture
def server(tmp_path: Path, detector_file: Path) -> ServerProcess:
    return ServerProcess(
        tmp_path / "server.log", "--model", str(detector_file), "--provider", "cpu"
    )


async def test_browser_publishes_and_watches_with_boxes(
    browser: Browser, server: ServerProcess, camera_clip: Path
) -> None:
    async with server, open_page(browser, clip=camera_clip) as page:
        await page.goto(server.url)
        await page.evaluate(PUBLISH.replace("STREAM", "camera"))
        await page.evaluate(WATCH.replace("STREAM", "camera"))
        await page.wait_for(box_is_drawn("person"))
        await page.wait_for(box_is_drawn("cat"))
        await page.wait_for("window.messages.some((m) => m.boxes && m.stream === 'camera')")


async def test_of_a_browser_that_offers_three_layers_one_is_taken(
    browser: Browser, server: ServerProcess, camera_clip: Path
) -> None:
    layers = ", ".join(
        f"{{ rid: '{rid}', scaleResolutionDownBy: {scale} }}"
        for rid, scale in (("h", 1), ("m", 2), ("l", 4))
    )
    publish = PUBLISH.replace(
        "streams: [camera] }", f"streams: [camera], sendEncodings: [{layers}] }}"
    )
    async with server, open_page(browser, clip=camera_clip) as page:
        await page.goto(server.url)
        await page.evaluate(publish.replace("STREAM", "camera"))
        await page.evaluate(WATCH.replace("STREAM", "camera"))
        await page.wait_for(box_is_drawn("person"))
        sending = await page.evaluate(
            "publishing.getStats().then((all) => [...all.values()]"
            ".filter((one) => one.type === 'outbound-rtp' && one.bytesSent > 0)"
            ".map((one) => one.rid ?? 'h'))"
        )
        assert sending == ["h"]


async def test_chromium_reads_the_age_of_a_picture_and_finds_its_boxes_by_timestamp(
    chromium: Browser, server: ServerProcess, camera_clip: Path, tmp_path: Path
) -> None:
    certificate, key = write_pair(tmp_path)
    async with server, open_page(chromium, clip=camera_clip) as page:
        url = f"{server.url}whip/porch"
        async with publishing(url, cert_file=str(certificate), key_file=str(key)):
            await page.goto(server.url)
            await page.wait_for(
                "fetch('/api/streams').then((r) => r.json()).then((b) => b.streams[0]?.live)"
            )
            await page.evaluate(WATCH.replace("STREAM", "porch"))
            # Both processes read one clock; NTP counts from 1900.
            await page.wait_for(
                "watching.getReceivers()[0].getSynchronizationSources().some((source) => {"
                "const age = Date.now() + 2208988800000 - source.captureTimestamp;"
                "return age >= 0 && age < 5000 && source.senderCaptureTimeOffset === 0 })"
            )
            await page.wait_for(
                "messages.some((m) => m.boxes && m.rtp_timestamp === shown.rtpTimestamp)"
            )
