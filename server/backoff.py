"""How long to wait before trying again: longer each time, and spread by chance, so that all cameras
of a switch that restarts do not come back at the same instant."""

import random

DOUBLINGS_AT_MOST = 16


def backoff_s(failures: int, first_s: float, most_s: float) -> float:
    """After so many failures in a row, 1 or more: doubled each time, of which half is chance."""
    whole_s = min(most_s, first_s * 2.0 ** min(failures - 1, DOUBLINGS_AT_MOST))
    return whole_s * random.uniform(0.5, 1.0)
