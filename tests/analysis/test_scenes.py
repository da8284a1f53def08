"""The scenes there are are bounded, and a change reaches whatever picture it is meant for."""

from pathlib import Path

import pytest

from server.analysis.scenes import SCENES_AT_MOST, Scenes
from server.analysis.zones import Layout, Mask

pytestmark = pytest.mark.unit

WINDOW = Mask("window", ((0.1, 0.1), (0.4, 0.1), (0.4, 0.4)))


async def test_a_mask_reaches_a_stream_that_began_before_a_thousand_others(tmp_path: Path) -> None:
    scenes = Scenes(tmp_path, tracking=True)
    live = scenes.of("porch")
    for number in range(SCENES_AT_MOST + 1):
        scenes.of(f"visitor-{number}")
    await scenes.change("porch", Layout(masks=(WINDOW,)))
    assert live.layout.masks == (WINDOW,)
    assert scenes.peek("porch") is live
