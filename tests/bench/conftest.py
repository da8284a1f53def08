"""A short clip made here, so that no test of the bench needs a file from elsewhere."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from bench.planes import plane_view


@pytest.fixture(scope="session")
def moving_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thirds of a second of 320x240 with detail that moves."""
    path = tmp_path_factory.mktemp("clip") / "moving.mp4"
    y, x = np.mgrid[:240, :320]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(20):
            video_frame = av.VideoFrame(320, 240, "yuv420p")
            luma = 128 + 60 * np.sin((x + 4 * number) / 9) + 50 * np.cos((y - 2 * number) / 13)
            plane_view(video_frame, 0)[:] = np.clip(luma, 0, 255).astype(np.uint8)
            for index in (1, 2):
                plane_view(video_frame, index)[:] = 100 + 2 * number
            video_frame.pts = number
            video_frame.time_base = Fraction(1, 30)
            container.mux(stream.encode(video_frame))
        container.mux(stream.encode(None))
    return path
