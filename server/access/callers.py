"""Where a request comes from: the client's address, the page's origin, the name it asked for.

Pure text; what a proxy says is believed only of proxies in the settings.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from server.errors import ForbiddenError, SettingsError
from server.settings import AuthSettings
from server.urls import split_url

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Endings that nobody can register, so that a stranger's page cannot make its own name lead here.
PRIVATE_ENDINGS = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".test")
FORWARDS_AT_MOST = 16


@dataclass(frozen=True, slots=True)
class Caller:
    """Where a request comes from. `secure` is None where a proxy we do not know may be between."""

    address: str
    secure: bool | None

    @property
    def is_local(self) -> bool:
        """From this machine, as far as we can tell."""
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return False

    @property
    def group(self) -> str:
        """What is counted together: one IPv6 customer has a whole /64 to call from."""
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError:
            return self.address
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                return str(address.ipv4_mapped)
            return str(ipaddress.ip_network((int(address), 64), strict=False))
        return str(address)


class Callers:
    """Reads and judges callers by the settings."""

    def __init__(self, settings: AuthSettings) -> None:
        self._proxies = tuple(_network(text) for text in settings.trusted_proxies)
        self._origins = frozenset(
            checked_origin(text, "allowed_origins") for text in settings.allowed_origins
        )
        parts = filter(None, map(split_url, self._origins))
        self._hosts = {part.hostname for part in parts}
        self._hosts |= {host.lower() for host in settings.allowed_hosts}

    def caller(
        self, peer: str | None, is_tls: bool, forwarded_for: str, forwarded_proto: str
    ) -> Caller:
        """The client: the last address that no trusted proxy vouches for.

        The texts are those headers, all lines of them joined by commas.
        """
        address = (peer or "").partition("%")[0]
        if not self._is_proxy(address):
            return Caller(address, True if is_tls else None)
        secure = is_tls or forwarded_proto.rpartition(",")[2].strip().lower() == "https"
        hops = forwarded_for.split(",")[-FORWARDS_AT_MOST:]
        for hop in reversed([hop.strip() for hop in hops if hop.strip()]):
            try:
                address = str(ipaddress.ip_address(hop.strip("[]")))
            except ValueError:
                break
            if not self._is_proxy(address):
                break
        return Caller(address, secure)

    def is_ours(self, origin: str, host: str, caller: Caller) -> bool:
        """Whether a page of this origin is our own."""
        parts = split_url(origin)
        if parts is None or parts.scheme not in ("http", "https"):
            return False
        if caller.secure and parts.scheme != "https":
            return False
        return parts.netloc.lower() == host.lower()

    def is_allowed(self, origin: str) -> bool:
        """Whether the settings name this origin."""
        return origin.lower() in self._origins

    def check_origin(self, headers: Mapping[str, str], host: str, caller: Caller) -> None:
        """Refuse what a stranger's page makes a browser send; no browser leaves the origin out."""
        origin = headers.get("Origin")
        if origin is None:
            if headers.get("Sec-Fetch-Site", "none") in ("cross-site", "same-site"):
                raise ForbiddenError("Sec-Fetch-Site: the request is of another site's page")
            return
        if not self.is_ours(origin, host, caller) and not self.is_allowed(origin):
            raise ForbiddenError(f"Origin: {origin!r:.80} is not in allowed_origins")

    def check_host(self, host: str) -> None:
        """Refuse names a stranger could have pointed here to make his page look like ours.

        Only needed where no key or token is: a page cannot show what it does not have.
        """
        parts = split_url(f"//{host}")
        name = (parts.hostname or "" if parts is not None else "").rstrip(".")
        if not name or name in self._hosts or "." not in name or name.endswith(PRIVATE_ENDINGS):
            return
        try:
            ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            raise ForbiddenError(f"Host: {name!r:.80} is not in allowed_hosts") from None

    def _is_proxy(self, text: str) -> bool:
        if not self._proxies:
            return False
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._proxies)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise SettingsError(f"trusted_proxies: {text!r} is not an address or a network") from None


def checked_origin(text: str, key: str) -> str:
    """An origin in the settings, in lower case; raises SettingsError that names the key."""
    parts = split_url(text)
    if parts is None or parts.scheme not in ("http", "https") or not parts.netloc:
        raise SettingsError(f"{key}: {text!r} is not like https://site.example")
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc or "*" in text:
        raise SettingsError(f"{key}: {text!r} is more than scheme, name and port")
    if not re.fullmatch(r"[A-Za-z0-9.:\[\]_-]+", parts.netloc):
        raise SettingsError(f"{key}: {text!r} has characters that no name has")
    return text.lower()
