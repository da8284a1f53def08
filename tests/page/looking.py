"""Questions to the page that several tests ask, as JavaScript expressions."""

import json

from bench.browsers.driver import Page
from tests.page.making import COLOURS_RGB, FOUND

PLACES = {name: place for name, _, place in FOUND}

# Share of points on the upright sides of a box, in the returned picture, that have its colour
# close by. Fading of thin lines by the codec is why "close" is wide, and why the neighbourhood
# is searched.
COLOURED = """
(() => {
  const video = document.querySelector('#remote');
  if (!video.videoWidth) return -1;
  const canvas = document.createElement('canvas');
  canvas.width = 640;
  canvas.height = 480;
  const context = canvas.getContext('2d');
  context.drawImage(video, 0, 0, 640, 480);
  const [x1, y1, x2, y2] = PLACE;
  const colour = COLOUR;
  let hits = 0;
  let points = 0;
  for (const x of [x1 * 640, x2 * 640]) {
    for (let share = 0.2; share < 0.95; share += 0.05) {
      const y = (y1 + share * (y2 - y1)) * 480;
      const { data } = context.getImageData(Math.round(x) - 5, Math.round(y), 10, 1);
      let nearest = Infinity;
      for (let i = 0; i < data.length; i += 4) {
        const distance = Math.hypot(...colour.map((value, channel) => value - data[i + channel]));
        nearest = Math.min(nearest, distance);
      }
      points += 1;
      if (nearest < 70) hits += 1;
    }
  }
  return hits / points;
})()
"""


def box_share(name: str) -> str:
    """0..1, how much of the sides of that object's box can be seen; -1 without a picture."""
    place, colour = json.dumps(PLACES[name]), json.dumps(COLOURS_RGB[name])
    return COLOURED.replace("PLACE", place).replace("COLOUR", colour)


def box_is_drawn(name: str) -> str:
    return f"{box_share(name)} >= 0.8"


def box_is_gone(name: str) -> str:
    # The clip itself has a few such colours.
    return f"(() => {{ const share = {box_share(name)}; return share >= 0 && share <= 0.3; }})()"


def drawn_by_page(name: str) -> str:
    """Whether the layer over the picture has that object's colour on the left side of its box."""
    place, colour = json.dumps(PLACES[name]), json.dumps(COLOURS_RGB[name])
    return f"""(() => {{
        const canvas = document.querySelector('#boxes');
        const video = document.querySelector('#remote');
        const fit = Math.min(canvas.width / video.videoWidth, canvas.height / video.videoHeight);
        const [wide, high] = [video.videoWidth * fit, video.videoHeight * fit];
        const [x1, y1, , y2] = {place};
        const x = Math.round((canvas.width - wide) / 2 + x1 * wide);
        const y = Math.round((canvas.height - high) / 2 + (y1 + y2) / 2 * high);
        const {{ data }} = canvas.getContext('2d').getImageData(x - 6, y, 12, 1);
        for (let i = 0; i < data.length; i += 4) {{
            const far = Math.hypot(...{colour}.map((value, c) => value - data[i + c]));
            if (data[i + 3] > 200 && far < 70) return true;
        }}
        return false;
    }})()"""


def call_is(state: str) -> str:
    return f"document.body.dataset.call === '{state}'"


def shape_is(video: str, ratio: float) -> str:
    """Width to height of what a video element shows."""
    return (
        f"(({{ videoWidth, videoHeight }}) => Math.abs(videoWidth / videoHeight - {ratio}) < 0.02)"
        f"(document.querySelector('{video}'))"
    )


def set_slider(selector: str, value: int) -> str:
    """As a hand on the slider would."""
    return f"""(() => {{
        const slider = document.querySelector('{selector}');
        slider.value = {value};
        slider.dispatchEvent(new Event('input', {{ bubbles: true }}));
    }})()"""


async def start_call(page: Page, url: str) -> None:
    """Open the page, press Start, wait for the picture to come back."""
    await page.goto(url)
    await page.click("#start")
    await page.wait_for(call_is("live"))
    await page.wait_for("document.querySelector('#remote').videoWidth > 0")


async def assert_clean(page: Page) -> None:
    """Nothing went wrong that the person did not see."""
    violations = await page.violations()
    assert not violations, violations
    assert not page.errors, page.errors
