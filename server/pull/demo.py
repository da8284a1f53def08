"""The stream `demo`: known pictures with a camera moving over them, for who has none.

Drawn on a thread of its own as it is shown; no clip lies anywhere. The pictures and their terms
are those of `server/pictures`.
"""

import math
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from server.clock import NS_PER_S, now_ns
from server.pull.device import to_frame
from server.pull.media_clock import TICKS_PER_S
from server.pull.picture_thread import PictureThread

PICTURES = Path(__file__).parents[1] / "pictures"
SIZE_WH = (640, 480)
FPS = 15
# Each picture is shown for so long, and fades into the next over the end of it.
SHOWN_S = 9.0
FADE_S = 1.0

BgrArray = npt.NDArray[np.uint8]


def load_pictures() -> list[BgrArray]:
    """Those there are, in order of their names."""
    found = [cv2.imread(str(path)) for path in sorted(PICTURES.glob("*.jpg"))]
    return [np.asarray(picture, np.uint8) for picture in found if picture is not None]


def view(picture: BgrArray, at_s: float) -> BgrArray:
    """What the moving camera sees of a picture at this instant of its turn."""
    width, height = SIZE_WH
    rows, columns = picture.shape[:2]
    # Wide enough to fill the frame at any place the camera goes to.
    fill = max(width / columns, height / rows)
    scale = fill * (1.18 + 0.14 * math.sin(0.5 * at_s))
    free_x, free_y = columns * scale - width, rows * scale - height
    left = free_x * (0.5 + 0.45 * math.sin(0.7 * at_s))
    top = free_y * (0.5 + 0.45 * math.sin(0.55 * at_s + 1.0))
    matrix = np.array([[scale, 0.0, -left], [0.0, scale, -top]], np.float64)
    seen = cv2.warpAffine(
        picture, matrix, SIZE_WH, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(seen, np.uint8)


def scene(pictures: list[BgrArray], number: int) -> BgrArray:
    """The picture with this number, in BGR; the same number gives the same picture."""
    turn, at_s = divmod(number / FPS, SHOWN_S)
    shown = view(pictures[int(turn) % len(pictures)], at_s)
    into = (at_s - (SHOWN_S - FADE_S)) / FADE_S
    if into > 0 and len(pictures) > 1:
        following = view(pictures[(int(turn) + 1) % len(pictures)], at_s - SHOWN_S)
        shown = np.asarray(cv2.addWeighted(shown, 1 - into, following, into, 0), np.uint8)
    return shown


class DemoReader(PictureThread):
    """Draws and delivers at its own pace."""

    def _run(self) -> None:
        counters = self.counters
        counters.state, counters.decoder = "playing", "drawn here"
        counters.attempts = counters.connects = 1
        pictures = load_pictures()
        began_at_ns, number = now_ns(), 0
        while not self._stopped.is_set():
            at_ns = now_ns()
            picture = to_frame(scene(pictures, number))
            self._hand_over(picture, at_ns * TICKS_PER_S // NS_PER_S, at_ns, at_ns)
            # Held up, it goes on from where it should be by now.
            number = max(number + 1, (now_ns() - began_at_ns) * FPS // NS_PER_S)
            due_ns = began_at_ns + number * NS_PER_S // FPS
            self._stopped.wait(max(0, due_ns - now_ns()) / NS_PER_S)
