"""How fast a quantity grows, and how sure that is. Pure functions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

SECONDS_AN_HOUR: Final = 3_600.0
# Half of the normal distribution's 95 % interval, and what Student's takes for 1 and 2 degrees
# of freedom, where the series below is too far off.
Z_95: Final = 1.959964
T_95_FEW: Final = {1: 12.706, 2: 4.303}
# Neighbouring samples of a memory curve are alike: beyond this likeness there is no saying.
ALIKE_AT_MOST: Final = 0.95


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth per hour, in the unit of the values, with its 95 % confidence interval."""

    per_hour: float
    low: float
    high: float
    samples: int
    worth: float
    """Independent samples they are worth: values that follow each other are alike."""

    def is_below(self, limit_per_hour: float) -> bool:
        """The whole interval is: "not shown to grow" is not "shown not to grow"."""
        return self.high < limit_per_hour


def slope(at_s: Sequence[float], values: Sequence[float]) -> Slope | None:
    """A line by least squares; None for fewer than four instants, which have no confidence.

    The interval is Student's, for as many samples as the series is worth: with a likeness r of
    neighbouring residuals, n samples are worth n (1 - r) / (1 + r).
    """
    count = len(values)
    if count != len(at_s):
        raise ValueError("as many instants as values")
    if count < 4:
        return None
    mean_at, mean_value = sum(at_s) / count, sum(values) / count
    spread = sum((at - mean_at) ** 2 for at in at_s)
    if spread == 0:
        return None
    pairs = list(zip(at_s, values, strict=True))
    tilt = sum((at - mean_at) * (value - mean_value) for at, value in pairs) / spread
    residuals = [value - mean_value - tilt * (at - mean_at) for at, value in pairs]
    power = sum(residual**2 for residual in residuals)
    # A flat line leaves only what rounding made, which is not likeness.
    noise = 1e-18 * sum(value**2 for value in values)
    alike = (
        sum(one * next_one for one, next_one in pairwise(residuals)) / power
        if power > noise
        else 0.0
    )
    alike = min(max(alike, 0.0), ALIKE_AT_MOST)
    worth = max(3.0, count * (1 - alike) / (1 + alike))
    error = math.sqrt(power / (worth - 2) / spread * count / worth)
    half = student_t_95(worth - 2) * error
    hourly = SECONDS_AN_HOUR
    return Slope(tilt * hourly, (tilt - half) * hourly, (tilt + half) * hourly, count, worth)


def student_t_95(degrees: float) -> float:
    """Half of Student's two-sided 95 % interval, to half a percent from one degree on."""
    if degrees <= 2:
        low = T_95_FEW[1]
        return low + (T_95_FEW[2] - low) * max(0.0, degrees - 1)
    z = Z_95
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
