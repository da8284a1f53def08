"""The addresses that media would be offered on."""

from aioice.ice import get_host_addresses

LOOPBACK = "127.0.0.1"


def media_addresses() -> list[str]:
    """Addresses of this machine's interfaces; loopback only when there is no other."""
    return get_host_addresses(use_ipv4=True, use_ipv6=True) or [LOOPBACK]
