"""A clip plays in Chromium and Firefox, from any place in it."""

import json
from pathlib import Path

import pytest

from bench.browsers.driver import Browser, open_page
from server.analysis.events import Clip
from server.history.mp4 import make_movie
from tests.analysis.films import Camera
from tests.fakes import FakeDetector
from tests.serving import changed, serving, until

pytestmark = pytest.mark.browser

# Resolves to the film's size and length and the brightest column of a late picture, or to what
# went wrong.
PLAY = """
new Promise((resolve) => {
  const video = document.createElement('video');
  video.muted = true;
  video.onerror = () => resolve({error: video.error.message || String(video.error.code)});
  video.onloadedmetadata = () => { video.currentTime = 1.5; };
  video.onseeked = async () => {
    const canvas = document.createElement('canvas');
    canvas.width = video.videoWidth; canvas.height = video.videoHeight;
    const context = canvas.getContext('2d');
    let best = 0;
    // Sought is not painted yet: a picture without its bar is looked at again.
    for (let look = 0; look < 300 && !best; look++) {
      await new Promise(requestAnimationFrame);
      context.drawImage(video, 0, 0);
      const row = context.getImageData(0, 50, canvas.width, 1).data;
      for (let x = 0; x < canvas.width; x++) if (row[4 * x] > row[4 * best]) best = x;
    }
    try { await video.play(); } catch (error) { resolve({error: String(error)}); return; }
    video.onended = () => resolve({
      size: [video.videoWidth, video.videoHeight], duration: video.duration, bright: best,
    });
  };
  video.src = URL;
})
"""


async def test_a_clip_plays_from_any_place_in_it(tmp_path: Path, browser: Browser) -> None:
    camera = Camera()
    movie = make_movie([camera.shoot(keyframe=number in (0, 30)) for number in range(60)])
    clip = Clip("a" * 32, "yard", 1, movie.duration_ms, len(movie.data), movie.size_wh)
    url = f"sqlite:///{tmp_path}/events.db"
    settings = changed(auth={"state_dir": str(tmp_path)}, store={"store": url})
    async with serving(FakeDetector(), settings) as server:
        await until(lambda: server.journal.store is not None)
        await server.journal.store.write_clip(clip)  # type: ignore[union-attr]
        server.recorder.folder.mkdir()
        server.recorder.path(clip.id).write_bytes(movie.data)
        async with open_page(browser) as page:
            await page.goto(server.url)
            played = await page.evaluate(PLAY.replace("URL", json.dumps(clip.to_json()["url"])))
    assert "error" not in played, played
    assert played["size"] == [320, 240]
    assert played["duration"] == pytest.approx(2, abs=0.1)
    # The bar of the picture at 1.5 s, which needs the second key frame and what follows it.
    assert played["bright"] == pytest.approx(45 * 4 + 10, abs=14)
