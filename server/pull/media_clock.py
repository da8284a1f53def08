"""The media time of fetched pictures, and whether they come late. No clocks of its own."""

from server.clock import NS_PER_S

TICKS_PER_S = 90_000
# A source's time that leaps by more than this, against the time its pictures come at, begins anew.
LEAP_S = 2.0
# Pictures that are this much later than they once were have been waiting somewhere.
LATE_S = 0.6
PUNCTUAL_S = 0.25
# Lateness that does not go away by leaving pictures out is another way of keeping time.
GIVE_UP_S = 5.0


class MediaClock:
    """One time line in 1/90000 s over all connections of a source: it goes on where a source comes
    back, and never back."""

    def __init__(self) -> None:
        self._last_ticks = -1
        self._source_s: float | None = None
        self._base_ticks = 0

    def ticks(self, source_s: float | None, received_at_ns: int) -> int:
        """For a picture of this time of its source, None where it tells none."""
        arrived = received_at_ns * TICKS_PER_S // NS_PER_S
        if source_s is None:
            ticks = arrived
        else:
            if self._source_s is None:
                self._source_s, self._base_ticks = source_s, arrived
            ticks = self._base_ticks + round((source_s - self._source_s) * TICKS_PER_S)
            if abs(ticks - arrived) > LEAP_S * TICKS_PER_S:
                self._source_s, self._base_ticks = source_s, arrived
                ticks = arrived
        self._last_ticks = max(ticks, self._last_ticks + 1)
        return self._last_ticks

    def restart(self) -> None:
        """The source counts from another instant from now on."""
        self._source_s = None


class Lateness:
    """Says which packets of a live source to leave out, because older ones are still being worked
    on: from the first that is late up to a key frame that is not."""

    def __init__(self) -> None:
        self._least_s: float | None = None
        self._since_s: float | None = None

    def is_late(self, source_s: float | None, received_s: float, is_key: bool) -> bool:
        """`received_s` is on any clock that goes on evenly."""
        if source_s is None:
            return False
        delay_s = received_s - source_s
        if self._least_s is None or delay_s < self._least_s:
            self._least_s = delay_s
        late_s = delay_s - self._least_s
        if self._since_s is None:
            if late_s > LATE_S:
                self._since_s = received_s
            return self._since_s is not None
        if is_key and (late_s < PUNCTUAL_S or received_s - self._since_s > GIVE_UP_S):
            self._least_s, self._since_s = delay_s, None
            return False
        return True
