"""Who a caller is and what it may do: API keys, signed tokens and one-use tickets.

Nothing here knows HTTP. Keys are compared by their digests in constant time; tokens are JWTs
with one fixed algorithm, an audience, a type and an end.
"""

import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from server.clock import NS_PER_S, now_ns, unix_ms
from server.errors import (
    MalformedError,
    SettingsError,
    TooManyError,
    UnauthorizedError,
)
from server.settings import STREAM_NAME, AuthSettings
from server.state_files import (
    api_key_rows,
    read_private,
    state_folder,
    token_secret,
    write_private,
)

SCOPES = ("publish", "view", "control")
PATTERN = re.compile(rf"\*|{STREAM_NAME.pattern}\*?")
KEY = re.compile(r"[A-Za-z0-9._~-]{24,200}")
DIGEST = re.compile(r"sha256=([0-9a-f]{64})")
BEARER = re.compile(r"[Bb]earer +([\x21-\x7e]{1,4096})")
SPAN = re.compile(r"([1-9][0-9]{0,8})([smhd])")
# What people call a key or token: one line, and no colon, which parts the rows of keys.
NAME_LENGTH = 60

ALGORITHM = "HS256"
AUDIENCE = "sightline"
TOKEN_TYPE = "sightline+jwt"
TICKET_LIFE_S = 30
TICKETS_AT_MOST = 1000
PATTERNS_AT_MOST = 32


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller: what it may do, on which streams, until when.

    `identity` is the same for everything one key or one token does. `token_id` is empty for
    keys. `expires_at_unix_s` is None for what does not end by itself. `name` is what its maker
    calls it; nothing follows from it.
    """

    identity: str
    scopes: frozenset[str]
    streams: tuple[str, ...]
    expires_at_unix_s: float | None = None
    token_id: str = ""
    name: str = ""

    def has(self, scope: str) -> bool:
        """For at least one stream."""
        return scope in self.scopes

    def allows(self, scope: str, stream: str | None) -> bool:
        """On this stream; None is what belongs to no stream and takes the pattern `*`."""
        if scope not in self.scopes:
            return False
        return any(matches(pattern, stream) for pattern in self.streams)

    def covers(self, streams: Iterable[str]) -> bool:
        """Whether every name that these patterns fit is also its own."""
        return all(any(includes(own, other) for own in self.streams) for other in streams)


# Everybody, where no key or token is needed.
ANYONE = Principal("anyone", frozenset(SCOPES), ("*",))
# Nobody in particular, on a public route.
NOBODY = Principal("nobody", frozenset(), ())


def matches(pattern: str, stream: str | None) -> bool:
    """`front-*` fits `front-door`; only `*` fits what has no name."""
    if pattern == "*":
        return True
    if stream is None:
        return False
    return stream.startswith(pattern[:-1]) if pattern.endswith("*") else stream == pattern


def includes(pattern: str, other: str) -> bool:
    """Whether all that `other` fits is also fitted by `pattern`."""
    if pattern.endswith("*"):
        return other.removesuffix("*").startswith(pattern[:-1])
    return other == pattern


def parse_patterns(texts: Sequence[object]) -> tuple[str, ...]:
    """Names, or beginnings with a star behind them."""
    if not 1 <= len(texts) <= PATTERNS_AT_MOST:
        raise MalformedError(f"streams: 1 to {PATTERNS_AT_MOST} names or patterns are wanted")
    for text in texts:
        if not isinstance(text, str) or not PATTERN.fullmatch(text):
            raise MalformedError(
                f"streams: {text!r:.80} is not a name, a beginning such as front-*, or *"
            )
    return tuple(dict.fromkeys(str(text) for text in texts))


def parse_scopes(texts: Sequence[object]) -> frozenset[str]:
    if not texts:
        raise MalformedError(f"scopes: empty; known are {', '.join(SCOPES)}")
    for text in texts:
        if text not in SCOPES:
            raise MalformedError(f"scopes: {text!r:.40} is not one of {', '.join(SCOPES)}")
    return frozenset(str(text) for text in texts)


def parse_name(text: object) -> str:
    """What a key or token is called; empty for nothing."""
    if not isinstance(text, str) or text != _printable(text) or ":" in text:
        raise MalformedError(f"name: not up to {NAME_LENGTH} printable characters without a colon")
    return text


def _printable(text: str) -> str:
    return "".join(each for each in text if each.isprintable()).strip()[:NAME_LENGTH]


def parse_span_s(text: str) -> int:
    """`90s`, `15m`, `1h` or `7d` in seconds."""
    found = SPAN.fullmatch(text)
    if found is None:
        raise MalformedError(f"ttl: {text!r:.40} is not a time such as 90s, 15m, 1h or 7d")
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


class KeyRing:
    """The static keys. Only digests are kept, and every one is compared on every look-up."""

    def __init__(self, rows: Sequence[str]) -> None:
        self._entries: list[tuple[bytes, Principal]] = []
        for number, row in enumerate(rows, 1):
            self._entries.append(_parse_key(row, number))

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str) -> Principal | None:
        digest = _digest(key)
        found = None
        for own, principal in self._entries:
            if hmac.compare_digest(own, digest):
                found = principal
        return found


def _parse_key(row: str, number: int) -> tuple[bytes, Principal]:
    """`KEY` or `SCOPES:STREAMS:KEY` or that and `:NAME`; messages never show the row, it may be a
    secret."""
    where = f"api_keys: row {number}"
    parts = row.split(":")
    if len(parts) not in (1, 3, 4):
        raise SettingsError(f"{where} is not KEY, SCOPES:STREAMS:KEY or SCOPES:STREAMS:KEY:NAME")
    is_alone = len(parts) == 1
    key, name = parts[0 if is_alone else 2], parts[3] if len(parts) == 4 else ""
    try:
        scopes = frozenset(SCOPES) if is_alone else parse_scopes(parts[0].split("+"))
        streams = ("*",) if is_alone else parse_patterns(parts[1].split("+"))
        parse_name(name)
    except MalformedError as error:
        raise SettingsError(f"{where}: {error}") from None
    if given := DIGEST.fullmatch(key):
        digest = bytes.fromhex(given[1])
    elif KEY.fullmatch(key):
        digest = _digest(key)
    else:
        raise SettingsError(
            f"{where}: a key has 24 to 200 letters, digits and . _ ~ -, or is sha256=HEX"
        )
    return digest, Principal(f"key {digest.hex()[:8]}", scopes, streams, name=name)


class Revocations:
    """Tokens that were ended before their time, until that time; kept in a file if one is given.

    Bound: what was issued here and has not run out. On the loop, but for `write`.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._until_unix_s: dict[str, float] = {}
        self._writing = threading.Lock()
        kept = read_private(file, "state_dir") if file is not None else None
        if kept:
            try:
                rows = json.loads(kept)
                self._until_unix_s = {str(name): float(until) for name, until in rows.items()}
            except (ValueError, TypeError, AttributeError):
                raise SettingsError(f"state_dir: {file} is damaged") from None

    def __contains__(self, token_id: object) -> bool:
        return token_id in self._until_unix_s

    def add(self, token_id: str, until_unix_s: float) -> None:
        """From now on; `write` makes it outlast this process."""
        at_unix_s = unix_ms() / 1000
        kept = {name: until for name, until in self._until_unix_s.items() if until > at_unix_s}
        # A new one, so that a thread may be writing the one before.
        self._until_unix_s = {**kept, token_id: until_unix_s}

    def write(self) -> None:
        """Onto the disk, if there is a file; on any thread, blocks. Raises SettingsError."""
        if self._file is not None:
            # In turns, each with what is newest then.
            with self._writing:
                write_private(self._file, json.dumps(self._until_unix_s), "state_dir")


class Tokens:
    """Signs and reads tokens."""

    def __init__(self, secret: str, max_life_s: float, revocations: Revocations) -> None:
        self._secret = secret
        self._max_life_s = max_life_s
        self._revocations = revocations

    def issue(
        self, scopes: frozenset[str], streams: tuple[str, ...], life_s: float, name: str = ""
    ) -> tuple[str, Principal]:
        """A token and what it will be read as."""
        if not 1 <= life_s <= self._max_life_s:
            raise MalformedError(
                f"ttl: {life_s:g} s is not within 1 s to token_max_hours: "
                f"{self._max_life_s / 3600:g} h"
            )
        at_unix_s = int(unix_ms() / 1000)
        claims = {
            "aud": AUDIENCE,
            "iat": at_unix_s,
            "exp": int(at_unix_s + life_s),
            "jti": secrets.token_urlsafe(12),
            "scope": " ".join(sorted(scopes)),
            "streams": list(streams),
        }
        if name:
            claims["sub"] = name
        token = jwt.encode(claims, self._secret, ALGORITHM, headers={"typ": TOKEN_TYPE})
        return token, _principal(claims)

    def read(self, token: str) -> Principal:
        """Whom the token names; refuses all that is not exactly one of ours and still good."""
        try:
            decoded = jwt.decode_complete(
                token,
                self._secret,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                options={"require": ["aud", "exp", "iat", "jti"]},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthorizedError("token: it has run out") from None
        except jwt.PyJWTError:
            raise UnauthorizedError("token: not one that was issued here") from None
        if decoded["header"].get("typ") != TOKEN_TYPE:
            raise UnauthorizedError("token: not one that was issued here")
        principal = _principal(decoded["payload"])
        if principal.token_id in self._revocations:
            raise UnauthorizedError("token: it was revoked")
        return principal

    def is_good(self, principal: Principal) -> bool:
        """Whether a token that was good when it was read still is."""
        until = principal.expires_at_unix_s
        run_out = until is not None and until <= unix_ms() / 1000
        return not run_out and principal.token_id not in self._revocations

    def revoke(self, token_id: str) -> None:
        """No longer good, wherever it is shown; no token outlives the longest life."""
        self._revocations.add(token_id, unix_ms() / 1000 + self._max_life_s)

    def write_revoked(self) -> None:
        """So that a restart knows of them; on any thread, blocks. Raises SettingsError."""
        self._revocations.write()


def _principal(claims: dict[str, Any]) -> Principal:
    """Signed by us, yet checked: the secret may be shared with another issuer."""
    scope, streams, token_id = claims.get("scope"), claims.get("streams"), claims.get("jti")
    # Another issuer may call its people as it likes.
    name = _printable(str(claims.get("sub", "")))
    try:
        if not isinstance(scope, str) or not isinstance(streams, list):
            raise MalformedError("scope and streams")
        return Principal(
            identity=f"token {token_id}",
            scopes=parse_scopes(scope.split()),
            streams=parse_patterns(streams),
            expires_at_unix_s=float(claims["exp"]),
            token_id=str(token_id),
            name=name,
        )
    except MalformedError as error:
        raise UnauthorizedError(f"token: {error}") from None


class Tickets:
    """One-use stand-ins for a key or token where a browser cannot send headers.

    A ticket may be shown in a URL because it is worthless a moment later. On the loop.
    """

    def __init__(self, clock_ns: Callable[[], int] = now_ns) -> None:
        self._clock_ns = clock_ns
        # Bound: TICKETS_AT_MOST; when full, new ones are refused. Oldest first.
        self._open: dict[bytes, tuple[Principal, int]] = {}

    def issue(self, principal: Principal) -> str:
        self._forget_old()
        if len(self._open) >= TICKETS_AT_MOST:
            raise TooManyError(
                f"tickets: {TICKETS_AT_MOST} are open and not yet used", TICKET_LIFE_S
            )
        ticket = secrets.token_urlsafe(24)
        until_ns = self._clock_ns() + TICKET_LIFE_S * NS_PER_S
        self._open[_digest(ticket)] = (principal, until_ns)
        return ticket

    def take(self, ticket: str) -> Principal:
        """Whom it stands for; never the same ticket twice."""
        self._forget_old()
        found = self._open.pop(_digest(ticket), None)
        if found is None:
            raise UnauthorizedError("ticket: used, run out, or not issued here")
        return found[0]

    def _forget_old(self) -> None:
        at_ns = self._clock_ns()
        for name, (_, until_ns) in list(self._open.items()):
            if until_ns > at_ns:
                break
            del self._open[name]


class Authority:
    """Everything above, made from the settings. On the loop."""

    def __init__(self, settings: AuthSettings, *hosts: str) -> None:
        self.required = is_required(settings, *hosts)
        self._tickets = Tickets()
        self._keys = KeyRing(api_key_rows(settings))
        self._tokens = token_maker(settings) if self.required else None

    @property
    def key_count(self) -> int:
        return len(self._keys)

    @property
    def tokens(self) -> Tokens:
        if self._tokens is None:
            raise MalformedError("auth: off, so that no token is needed or issued")
        return self._tokens

    def identify(self, authorization: str | None) -> Principal:
        """Who speaks, by the Authorization header; anyone where none is needed."""
        if not self.required:
            return ANYONE
        if authorization is None:
            raise UnauthorizedError("Authorization: missing; Bearer with a key or token is wanted")
        found = BEARER.fullmatch(authorization)
        if found is None:
            raise UnauthorizedError("Authorization: not Bearer with a key or token")
        principal = self._keys.find(found[1])
        return principal if principal is not None else self.tokens.read(found[1])

    def issue_ticket(self, principal: Principal) -> str:
        if not self.required:
            raise MalformedError("auth: off, so that no ticket is needed or issued")
        return self._tickets.issue(principal)

    def take_ticket(self, ticket: str) -> Principal:
        """Whom the ticket stands for, if that key or token is still good."""
        principal = self._tickets.take(ticket)
        if not self.tokens.is_good(principal):
            raise UnauthorizedError("ticket: its token has ended")
        return principal


def is_required(settings: AuthSettings, *hosts: str) -> bool:
    """Whether a key or token is needed; `auto` asks for one unless we listen on loopback only."""
    if settings.auth != "auto":
        return settings.auth == "on"
    return not all(_is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_maker(settings: AuthSettings) -> Tokens:
    """Tokens with the secret of the settings, or the one kept in the state folder."""
    secret = token_secret(settings)
    # Without a folder of our own there is nowhere to keep what was revoked.
    file = (
        None
        if settings.token_secret and not settings.state_dir
        else (state_folder(settings) / "revoked.json")
    )
    return Tokens(secret, settings.token_max_hours * 3600, Revocations(file))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()
