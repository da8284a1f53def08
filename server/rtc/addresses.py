"""The addresses that media would be offered on."""

from collections.abc import Callable

from aioice.ice import get_host_addresses

from server.clock import NS_PER_S, now_ns

LOOPBACK = "127.0.0.1"
KEPT_NS = 2 * NS_PER_S


def media_addresses() -> list[str]:
    """Addresses of this machine's interfaces; loopback only when there is no other."""
    return get_host_addresses(use_ipv4=True, use_ipv6=True) or [LOOPBACK]


class RecentAddresses:
    """The same, listed anew every two seconds at most: the listing was a sixth of what an offer
    costs the loop."""

    def __init__(self, clock_ns: Callable[[], int] = now_ns) -> None:
        self._clock_ns = clock_ns
        self._addresses: list[str] = []
        self._listed_at_ns = 0

    def get(self) -> list[str]:
        at_ns = self._clock_ns()
        if not self._addresses or at_ns - self._listed_at_ns >= KEPT_NS:
            self._addresses, self._listed_at_ns = media_addresses(), at_ns
        return self._addresses
