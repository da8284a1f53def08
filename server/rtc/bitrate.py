"""How many bits a second an outgoing video may use; pure, with the clock handed in.

Three sayings meet here: the picture (`ceiling_bps`: what a size at a rate can make use of), the
receiver (REMB and loss, in `RateFollower`) and the encoder, which should not be disturbed for
every small step (`StepFilter`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from server.clock import NS_PER_S

# What 640x480 at 30 frames a second can make use of. Other pictures follow by the 0.75th power
# of their pixel rate: the rule of thumb that detail grows slower than area.
REFERENCE_BPS = 2_000_000
REFERENCE_PIXELS_PER_S = 640 * 480 * 30
DETAIL_EXPONENT = 0.75

# Part of the ceiling in use before the receiver has said anything.
START_SHARE = 0.6
# Part of the receiver's estimate that we use: the rest is for retransmission and overhead.
REMB_SHARE = 0.9
# Growth per second, and how long after a step down none is tried. A receiver's own estimate
# grows by about 8 % a second; following it faster than that adds no second delay to the first.
GROWTH_PER_S = 1.15
HOLD_S = 1.0
# How long after a heavy loss the path counts as narrow: what is sent is counted then.
NARROW_S = 10.0
# Loss, as part of the packets, from which the rate falls, and above which it does not grow.
LOSS_HIGH = 0.10
LOSS_LOW = 0.02

FPS_RANGE = (1.0, 120.0)
NOMINAL_FPS = 30.0


def ceiling_bps(size_wh: tuple[int, int], fps: float, min_bps: int, max_bps: int) -> int:
    """The most that a picture of this size and rate can make use of, within the settings."""
    pixels_per_s = size_wh[0] * size_wh[1] * fps
    wish = REFERENCE_BPS * (pixels_per_s / REFERENCE_PIXELS_PER_S) ** DETAIL_EXPONENT
    return int(max(min_bps, min(wish, max_bps)))


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the receiver's side of the matter allows, independent of the picture's size.

    Made on the loop, used on an encode thread, where the size is known.
    """

    share: float
    cap_bps: int | None
    min_bps: int
    max_bps: int

    def bits_per_s(self, size_wh: tuple[int, int], fps: float) -> int:
        """The rate for pictures of this size; never above cap and ceiling, never below min."""
        rate = self.share * ceiling_bps(size_wh, fps, self.min_bps, self.max_bps)
        if self.cap_bps is not None:
            rate = min(rate, self.cap_bps)
        return int(max(self.min_bps, rate))


class RateFollower:
    """Follows what the receiver reports: down at once, up slowly. Loop only."""

    def __init__(self, min_bps: int, max_bps: int, clock: Callable[[], int]) -> None:
        self._min_bps = min_bps
        self._max_bps = max_bps
        self._clock = clock
        self._share = START_SHARE
        self._cap_bps: float | None = None
        self._estimate_bps: float | None = None
        self._told_bps: int | None = None
        """The last estimate as the receiver said it."""
        self._loss = 0.0
        self._used_bps: int | None = None
        self._grown_at_ns = clock()
        self._hold_until_ns = 0
        self._narrow_until_ns = 0

    @property
    def is_narrow(self) -> bool:
        """Whether much was lost lately of more than the receiver believes in. Either alone is no
        proof: on a radio path much is lost however little is sent, and receivers on busy machines
        take their own lateness for a queue, where sending less would prove them right."""
        return self._clock() < self._narrow_until_ns

    def remb(self, estimate_bps: int) -> None:
        """The receiver's estimate of what the way to it can carry."""
        self._grow()
        self._told_bps = estimate_bps
        self._estimate_bps = max(float(self._min_bps), estimate_bps * REMB_SHARE)
        if self._cap_bps is None:
            self._cap_bps = self._estimate_bps
        elif self._estimate_bps < self._cap_bps:
            self._cap_bps = self._estimate_bps
            self._hold()

    def loss(self, fraction: float, sent_bps: float) -> None:
        """The part of our packets lost since the last receiver report, 0..1, and what left since
        then, repairs apart."""
        self._grow()
        self._loss = fraction
        if fraction < LOSS_HIGH:
            return
        # Who makes no estimate leaves the loss to speak for itself.
        if self._told_bps is None or self._told_bps < sent_bps:
            self._narrow_until_ns = self._clock() + int(NARROW_S * NS_PER_S)
        if self._used_bps is not None:
            base = self._used_bps if self._cap_bps is None else min(self._cap_bps, self._used_bps)
            self._cap_bps = max(float(self._min_bps), base * (1.0 - 0.5 * fraction))
            self._hold()

    def used(self, bits_per_s: int) -> None:
        """The rate that the last picture was encoded for: what a loss is measured against."""
        self._used_bps = bits_per_s

    def allowance(self) -> Allowance:
        """What holds now."""
        self._grow()
        cap_bps = None if self._cap_bps is None else int(self._cap_bps)
        return Allowance(self._share, cap_bps, self._min_bps, self._max_bps)

    def _hold(self) -> None:
        self._hold_until_ns = self._clock() + int(HOLD_S * NS_PER_S)

    def _grow(self) -> None:
        now_ns = self._clock()
        elapsed_s = (now_ns - max(self._grown_at_ns, self._hold_until_ns)) / NS_PER_S
        self._grown_at_ns = now_ns
        if elapsed_s <= 0 or self._loss > LOSS_LOW:
            return
        growth = GROWTH_PER_S**elapsed_s
        if self._cap_bps is not None:
            # Without an estimate only a loss can have set the cap, and it ends where it began
            # to matter.
            limit_bps = self._estimate_bps if self._estimate_bps is not None else self._max_bps
            self._cap_bps = min(self._cap_bps * growth, float(limit_bps))
        if self._estimate_bps is not None:
            self._share = min(1.0, self._share * growth)


class StepFilter:
    """Passes a wanted rate on only when it differs enough to be worth a change."""

    def __init__(self, down: float = 0.02, up: float = 0.05) -> None:
        self._down = down
        self._up = up
        self._value: int | None = None

    def step(self, wanted_bps: int) -> int:
        """The rate to use: the wanted one, or the last one while they are close."""
        value = self._value
        if value is None or not value * (1 - self._down) <= wanted_bps <= value * (1 + self._up):
            self._value = value = wanted_bps
        return value


class CadenceMeter:
    """Frames per second from media time; a pause does not count as a slow rate."""

    def __init__(self) -> None:
        self._last_ticks: int | None = None
        self._interval_ticks = 90_000 / NOMINAL_FPS

    @property
    def fps(self) -> float:
        """The smoothed rate; nominal until there is something to go by."""
        low, high = FPS_RANGE
        return max(low, min(90_000 / self._interval_ticks, high))

    def observe(self, ticks: int) -> float:
        """Take one frame's time in 1/90000 s and return the smoothed rate."""
        if self._last_ticks is not None:
            gap = ticks - self._last_ticks
            if 0 < gap <= 90_000:
                self._interval_ticks += (gap - self._interval_ticks) / 8
        self._last_ticks = ticks
        return self.fps
