"""`python -m server token`: issue a token with the server's own secret, or make an API key."""

import argparse
import datetime
import hashlib
import json
import secrets
import sys
from collections.abc import Sequence

from server.access.auth import (
    SCOPES,
    parse_name,
    parse_patterns,
    parse_scopes,
    parse_span_s,
    token_maker,
)
from server.errors import SightlineError
from server.settings import AuthSettings
from server.settings_loading import add_arguments, load_settings


def run_token(arguments: Sequence[str]) -> int:
    """Print the token on standard output and what it is on standard error; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m server token",
        # Without the settings that it takes too: they would bury what was wrong.
        usage="python -m server token --scope SCOPE [--scope SCOPE ...] [--stream NAME ...] "
        "[--ttl TIME] [--key] [--SETTING VALUE ...] [--help]",
        description="Issue a token. It is signed with the secret that the server uses: give the "
        "same --state-dir or --token-secret, or run this where the server runs.",
    )
    parser.add_argument(
        "--scope", action="append", choices=SCOPES, help="what it may do; give more than one"
    )
    parser.add_argument(
        "--stream", action="append", metavar="NAME", help="a stream, or front-* (default: *)"
    )
    parser.add_argument(
        "--name", default="", help="whose it is, as those see who may see who watches"
    )
    parser.add_argument("--ttl", default="1h", help="how long it is good: 90s, 15m, 1h, 7d")
    parser.add_argument(
        "--key", action="store_true", help="make an API key, which does not run out, instead"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    add_arguments(parser)
    parsed = parser.parse_args(arguments)
    if not parsed.scope:
        parser.error("--scope is needed: " + ", ".join(SCOPES))
    try:
        settings = load_settings(parsed).auth
        scopes = parse_scopes(parsed.scope)
        streams = parse_patterns(parsed.stream or ["*"])
        name = parse_name(parsed.name)
        if parsed.key:
            made = _key(scopes, streams, name)
        else:
            made = _token(settings, scopes, streams, parse_span_s(parsed.ttl), name)
    except SightlineError as error:
        print(f"sightline: {error}", file=sys.stderr)
        return 2
    if parsed.json:
        print(json.dumps(made))
        return 0
    print(made.pop("key" if parsed.key else "token"))
    for name, value in made.items():
        print(f"{name}: {value}", file=sys.stderr)
    return 0


def _token(
    settings: AuthSettings,
    scopes: frozenset[str],
    streams: tuple[str, ...],
    life_s: float,
    name: str,
) -> dict[str, object]:
    token, principal = token_maker(settings).issue(scopes, streams, life_s, name)
    assert principal.expires_at_unix_s is not None
    until = datetime.datetime.fromtimestamp(principal.expires_at_unix_s, datetime.UTC)
    return {
        "token": token,
        "id": principal.token_id,
        "scopes": sorted(scopes),
        "streams": list(streams),
        "until": until.isoformat(),
    }


def _key(scopes: frozenset[str], streams: tuple[str, ...], name: str) -> dict[str, object]:
    key = secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    row = f"{'+'.join(sorted(scopes))}:{'+'.join(streams)}:sha256={digest}"
    return {"key": key, "row": f"{row}:{name}" if name else row}
