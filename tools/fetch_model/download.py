"""One file over HTTP: resumed, bounded in size and time, put in place only when whole.

The partial file lies beside the target as `NAME.part` with a note of what it is a part of, so
that a later run, or the next attempt of this one, goes on where the last one stopped. What is at
the target's name is always a complete file.
"""

import contextlib
import hashlib
import http.client
import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from server.errors import SightlineError

CHUNK_BYTES = 256 * 1024
MAX_REDIRECTS = 5


class FetchError(SightlineError):
    """The file could not be fetched; the message says why in one line."""


class OfflineError(FetchError):
    """The host cannot be reached at all."""


class ChecksumError(FetchError):
    """The bytes are not those that were pinned; nothing was put in place."""


class TransientError(FetchError):
    """Broke off or answered 429 or 5xx: worth another attempt."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one download may cost."""

    timeout_s: float = 20.0
    """Longest silence of the server."""
    total_s: float = 1800.0
    """Longest download, all attempts together."""
    max_bytes: int = 1024**3
    attempts: int = 4
    retry_wait_s: float = 1.0
    """Doubled from attempt to attempt."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was put in place."""

    path: Path
    sha256: str
    size_bytes: int
    resumed_at_bytes: int


OnBytes = Callable[[int, int], None]
"""Told (bytes there so far, bytes in all or 0)."""


def sha256_of(path: Path) -> str:
    """Lower-case hex digest of the file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    size_bytes: int = 0,
    limits: Limits | None = None,
    on_bytes: OnBytes = lambda done, total: None,
) -> Fetched:
    """Brings `url` to `target`; FetchError leaves `target` as it was.

    `sha256` and `size_bytes` are checked where given. Blocks; ends after `limits.total_s`.
    """
    limits = limits or Limits()
    deadline_s = time.monotonic() + limits.total_s
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target, url)
    attempt = 0
    while True:
        attempt += 1
        begun_at = part.size_bytes()
        try:
            _receive(part, size_bytes, limits, deadline_s, on_bytes)
            break
        except TransientError as error:
            # An attempt that got further does not count: slow lines break off often.
            if part.size_bytes() > begun_at:
                attempt = 0
            wait_s = limits.retry_wait_s * 2 ** max(attempt - 1, 0)
            if attempt >= limits.attempts or time.monotonic() + wait_s > deadline_s:
                raise FetchError(f"{error}; what came is kept, run it again to go on") from None
            time.sleep(wait_s)
    try:
        return part.put_in_place(sha256, size_bytes)
    except ChecksumError:
        if not part.resumed_at_bytes:
            raise
    # The file changed between the two halves: one more time, from its beginning.
    return fetch(
        url, target, sha256=sha256, size_bytes=size_bytes, limits=limits, on_bytes=on_bytes
    )


class _Part:
    """The partial file and the note of what it is a part of."""

    def __init__(self, target: Path, url: str) -> None:
        self.target = target
        self.url = url
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")
        self.validator = ""
        self.resumed_at_bytes = 0
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            noted = {}
        if isinstance(noted, dict) and noted.get("url") == url:
            self.validator = str(noted.get("validator", ""))
        else:
            self.discard()

    def size_bytes(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def remember(self, validator: str) -> None:
        self.validator = validator
        note = json.dumps({"url": self.url, "validator": validator})
        self.note.write_text(note, encoding="utf-8")

    def discard(self) -> None:
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)

    def put_in_place(self, sha256: str, size_bytes: int) -> Fetched:
        found_bytes = self.size_bytes()
        found = sha256_of(self.path)
        problem = _not_a_model(self.path)
        if not problem and size_bytes and found_bytes != size_bytes:
            problem = f"{found_bytes:,} bytes came, {size_bytes:,} are on record"
        if not problem and sha256 and found != sha256:
            problem = f"SHA-256 {found} came, {sha256} is on record"
        if problem:
            self.discard()
            raise ChecksumError(f"{self.url}: {problem}; nothing was kept")
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self.target)
        self.note.unlink(missing_ok=True)
        return Fetched(self.target, found, found_bytes, self.resumed_at_bytes)


def _not_a_model(path: Path) -> str:
    """Why these bytes are clearly no ONNX file, in words that help; empty when they may be."""
    with path.open("rb") as file:
        head = file.read(256).lstrip()
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer came, not the file"
    if head[:1] == b"<":
        return "a web page came, not the file"
    return "nothing came" if not head else ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, and never from https to plain http."""

    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: object,
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and req.type == "https":
            raise FetchError(f"{req.full_url}: redirected from https to {scheme}: refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _receive(
    part: _Part, size_bytes: int, limits: Limits, deadline_s: float, on_bytes: OnBytes
) -> None:
    """One request; returns when the part is complete."""
    there_bytes = part.size_bytes()
    headers = {"User-Agent": "sightline-fetch", "Accept-Encoding": "identity"}
    if there_bytes:
        if size_bytes and there_bytes == size_bytes:
            return
        headers["Range"] = f"bytes={there_bytes}-"
        if part.validator:
            headers["If-Range"] = part.validator
    opener = urllib.request.build_opener(_Redirects)
    try:
        with opener.open(
            urllib.request.Request(part.url, headers=headers), timeout=limits.timeout_s
        ) as response:
            _write(response, part, there_bytes, size_bytes, limits, deadline_s, on_bytes)
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            _explain_status(error, part)
    except (TimeoutError, ConnectionResetError, http.client.HTTPException) as error:
        raise TransientError(f"{part.url}: broke off: {_reason(error)}") from None
    except ssl.SSLError as error:
        raise FetchError(f"{part.url}: TLS: {_reason(error)}") from None
    except urllib.error.URLError as error:
        _explain_unreachable(error, part.url)


def _write(
    response: http.client.HTTPResponse,
    part: _Part,
    there_bytes: int,
    size_bytes: int,
    limits: Limits,
    deadline_s: float,
    on_bytes: OnBytes,
) -> None:
    resumed = response.status == 206 and _range_start(response) == there_bytes
    if response.status == 206 and not resumed:
        part.discard()
        raise TransientError(f"{part.url}: the server sent another range than asked for")
    if not resumed:
        there_bytes = 0
    elif not part.resumed_at_bytes:
        part.resumed_at_bytes = there_bytes
    length_text = response.headers.get("Content-Length") or ""
    expected_bytes = there_bytes + int(length_text) if length_text.isdecimal() else 0
    cap_bytes = min(limits.max_bytes, size_bytes or limits.max_bytes)
    if expected_bytes > cap_bytes:
        part.discard()
        raise FetchError(
            f"{part.url}: {expected_bytes:,} bytes announced, over the limit of {cap_bytes:,}"
        )
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if validator.startswith("W/"):
        validator = ""  # a weak tag does not promise the same bytes, so If-Range refuses it
    part.remember(validator)
    with part.path.open("ab" if resumed else "wb") as file:
        while chunk := response.read(CHUNK_BYTES):
            there_bytes += len(chunk)
            if there_bytes > cap_bytes:
                file.close()
                part.discard()
                raise FetchError(f"{part.url}: more came than the limit of {cap_bytes:,} bytes")
            file.write(chunk)
            on_bytes(there_bytes, expected_bytes or size_bytes)
            if time.monotonic() > deadline_s:
                raise FetchError(
                    f"{part.url}: not done after {limits.total_s:.0f} s; run it again to go on"
                )
    if expected_bytes and there_bytes < expected_bytes:
        raise TransientError(
            f"{part.url}: broke off after {there_bytes:,} of {expected_bytes:,} bytes"
        )


def _range_start(response: http.client.HTTPResponse) -> int:
    """Where a partial answer begins; -1 when it does not say."""
    unit, _, rest = (response.headers.get("Content-Range") or "").partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() else -1


def _explain_status(error: urllib.error.HTTPError, part: _Part) -> None:
    if error.code == 416:
        # The part is as long as the file or longer than it: the next attempt starts over.
        part.discard()
        raise TransientError(f"{part.url}: the part kept here does not fit") from None
    if error.code == 429 or error.code >= 500:
        raise TransientError(f"{part.url}: the server answered {error.code}") from None
    if error.code in (301, 302, 303, 307, 308):
        raise FetchError(f"{part.url}: more than {MAX_REDIRECTS} redirects") from None
    raise FetchError(f"{part.url}: the server answered {error.code} {error.reason}") from None


def _explain_unreachable(error: urllib.error.URLError, url: str) -> None:
    host = urllib.parse.urlsplit(url).hostname
    reason = error.reason
    if isinstance(reason, TimeoutError):
        raise TransientError(f"{url}: {host} did not answer in time") from None
    if isinstance(reason, ssl.SSLError):
        raise FetchError(f"{url}: TLS: {_reason(reason)}") from None
    if isinstance(reason, socket.gaierror | OSError):
        raise OfflineError(f"cannot reach {host}: {_reason(reason)}") from None
    raise FetchError(f"{url}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """One line of an exception."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
