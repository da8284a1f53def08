"""TURN credentials in coturn's `use-auth-secret` form: the name says until when, the password
proves that we said so."""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from server.clock import unix_ms
from server.settings import Settings


def turn_credentials(secret: str, identity: str, life_s: int, at_unix_s: int) -> tuple[str, str]:
    """User name and password, good until `at_unix_s + life_s`."""
    username = f"{at_unix_s + life_s}:{identity.replace(' ', '-').replace(':', '-')}"
    # The scheme's own digest; as an HMAC it is not what breaks SHA-1.
    digest = hmac.new(secret.encode(), username.encode(), hashlib.sha1).digest()
    return username, base64.b64encode(digest).decode()


def ice_credentials(settings: Settings, identity: str) -> tuple[str, str]:
    """For TURN now: made for this caller with `turn_secret`, else those of the settings."""
    auth = settings.auth
    if not auth.turn_secret:
        return settings.rtc.ice_username, settings.rtc.ice_credential
    return turn_credentials(auth.turn_secret, identity, auth.turn_ttl_s, int(unix_ms() / 1000))


def ice_servers_json(
    settings: Settings, identity: str, *, relays: bool
) -> Sequence[dict[str, Any]]:
    """What a page gives its RTCPeerConnection; relays only for callers entitled to them."""
    username, credential = ice_credentials(settings, identity)
    servers: list[dict[str, Any]] = []
    for url in settings.rtc.ice_servers:
        if url.startswith("stun"):
            servers.append({"urls": url})
        elif relays:
            servers.append({"urls": url, "username": username, "credential": credential})
    return servers
