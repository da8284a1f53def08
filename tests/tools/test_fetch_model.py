"""Fetching against a real HTTP server on loopback that can break off, lie and redirect."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.model_registry import ModelEntry
from tools.fetch_model.__main__ import main
from tools.fetch_model.download import (
    ChecksumError,
    FetchError,
    Limits,
    OfflineError,
    fetch,
)
from tools.fetch_model.lock import Lock

pytestmark = pytest.mark.service

BODY = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(BODY).hexdigest()
LIMITS = Limits(timeout_s=5, retry_wait_s=0, attempts=3)


@dataclass
class Script:
    """What the server does next, and what it was asked."""

    body: bytes = BODY
    etag: str = '"one"'
    break_after: list[int] = field(default_factory=list)
    """Bytes after which each coming answer breaks off; then answers are whole."""
    statuses: list[int] = field(default_factory=list)
    """Errors to answer with first."""
    honours_ranges: bool = True
    announces: int | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Site:
    url: str
    script: Script


@pytest.fixture
def site() -> Iterator[Site]:
    script = Script()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            script.asked.append(dict(self.headers))
            script.paths.append(self.path)
            self.close_connection = True
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", "/" + self.path.removeprefix("/to/"))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if script.statuses:
                self.send_response(script.statuses.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = 0
            asked_range = self.headers.get("Range")
            fresh = self.headers.get("If-Range") in (None, script.etag)
            if asked_range and script.honours_ranges and fresh:
                start = int(asked_range.removeprefix("bytes=").rstrip("-"))
                if start >= len(script.body):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                total = len(script.body)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            rest = script.body[start:]
            announced = len(rest) if script.announces is None else script.announces
            self.send_header("Content-Length", str(announced))
            self.send_header("ETag", script.etag)
            self.end_headers()
            if script.break_after:
                rest = rest[: script.break_after.pop(0)]
            self.wfile.write(rest)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="test site")
    thread.start()
    yield Site(f"http://127.0.0.1:{server.server_address[1]}", script)
    server.shutdown()
    server.server_close()
    thread.join(5)
    assert not thread.is_alive()


def test_whole_file_is_put_in_place_and_nothing_else_is_left(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "cache" / "model.onnx"
    seen: list[tuple[int, int]] = []
    fetched = fetch(
        site.url + "/model",
        target,
        sha256=SHA256,
        size_bytes=len(BODY),
        limits=LIMITS,
        on_bytes=lambda done, total: seen.append((done, total)),
    )
    assert target.read_bytes() == BODY
    assert (fetched.sha256, fetched.size_bytes, fetched.resumed_at_bytes) == (SHA256, len(BODY), 0)
    assert [path.name for path in target.parent.iterdir()] == ["model.onnx"]
    assert seen[-1] == (len(BODY), len(BODY))


def test_broken_transfer_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.script.break_after = [300_000, 200_000]
    fetched = fetch(site.url + "/m", tmp_path / "m", sha256=SHA256, limits=LIMITS)
    assert fetched.resumed_at_bytes == 300_000
    assert [asked.get("Range") for asked in site.script.asked] == [
        None,
        "bytes=300000-",
        "bytes=500000-",
    ]
    assert (tmp_path / "m").read_bytes() == BODY


def test_later_run_goes_on_with_the_part_of_an_earlier_one(site: Site, tmp_path: Path) -> None:
    site.script.break_after = [100_000]
    site.script.statuses = []
    target = tmp_path / "m"
    with pytest.raises(FetchError, match="broke off after 100,000"):
        fetch(site.url + "/m", target, limits=Limits(timeout_s=5, attempts=0, retry_wait_s=0))
    assert not target.exists()
    fetched = fetch(site.url + "/m", target, sha256=SHA256, limits=LIMITS)
    assert fetched.resumed_at_bytes == 100_000


def test_file_that_changed_meanwhile_is_fetched_from_its_beginning(
    site: Site, tmp_path: Path
) -> None:
    site.script.break_after = [100_000]
    with pytest.raises(FetchError):
        fetch(site.url + "/m", tmp_path / "m", limits=Limits(timeout_s=5, attempts=0))
    site.script.body, site.script.etag = b"other" * 100_000, '"two"'
    fetch(site.url + "/m", tmp_path / "m", limits=LIMITS)
    assert (tmp_path / "m").read_bytes() == b"other" * 100_000


def test_server_without_ranges_is_read_from_the_beginning(site: Site, tmp_path: Path) -> None:
    site.script.honours_ranges = False
    site.script.break_after = [100_000]
    assert fetch(site.url + "/m", tmp_path / "m", sha256=SHA256, limits=LIMITS).size_bytes == len(
        BODY
    )


def test_part_longer_than_the_file_is_thrown_away(site: Site, tmp_path: Path) -> None:
    (tmp_path / "m.part").write_bytes(BODY + b"more")
    (tmp_path / "m.part.json").write_text(
        json.dumps({"url": site.url + "/m", "validator": '"one"'})
    )
    fetch(site.url + "/m", tmp_path / "m", sha256=SHA256, limits=LIMITS)
    assert (tmp_path / "m").read_bytes() == BODY


def test_other_bytes_than_pinned_leave_the_old_file_alone(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"old")
    site.script.body = b"tampered" + BODY
    with pytest.raises(ChecksumError, match=r"SHA-256 \w+ came"):
        fetch(site.url + "/m", target, sha256=SHA256, limits=LIMITS)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
    ],
)
def test_what_is_no_model_is_named(site: Site, tmp_path: Path, body: bytes, expected: str) -> None:
    site.script.body = body
    with pytest.raises(ChecksumError, match=expected):
        fetch(site.url + "/m", tmp_path / "m", limits=LIMITS)


def test_redirect_is_followed_and_a_circle_is_not(site: Site, tmp_path: Path) -> None:
    fetch(site.url + "/to/m", tmp_path / "m", sha256=SHA256, limits=LIMITS)
    assert site.script.paths == ["/to/m", "/m"]
    with pytest.raises(FetchError, match="redirect"):
        fetch(site.url + "/to/to/to/to/to/to/to/m", tmp_path / "n", limits=LIMITS)


def test_busy_server_is_asked_again_and_a_missing_file_is_not(site: Site, tmp_path: Path) -> None:
    site.script.statuses = [503, 429]
    fetch(site.url + "/m", tmp_path / "m", sha256=SHA256, limits=LIMITS)
    asked = len(site.script.asked)
    site.script.statuses = [404]
    with pytest.raises(FetchError, match="answered 404"):
        fetch(site.url + "/n", tmp_path / "n", limits=LIMITS)
    assert len(site.script.asked) == asked + 1


def test_too_large_a_file_is_refused_before_and_while_it_comes(site: Site, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="announced, over the limit of 1,000"):
        fetch(site.url + "/m", tmp_path / "m", limits=Limits(max_bytes=1000))
    assert list(tmp_path.iterdir()) == []


def test_nobody_listening_is_offline(tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match=r"cannot reach 127\.0\.0\.1"):
        fetch("http://127.0.0.1:9/m", tmp_path / "m", limits=LIMITS)


def _entry(url: str, sha256: str = SHA256, licence: str = "MIT") -> ModelEntry:
    return ModelEntry(
        "tiny", "tiny.onnx", url, sha256, 0, licence, "https://x.test/l", "F", "1x1", "things"
    )


def _run(
    capsys: pytest.CaptureFixture[str], entry: ModelEntry, cache: Path, *flags: str
) -> tuple[int, dict[str, object], str]:
    status = main(["tiny", "--dir", str(cache), "--json", *flags], lambda name: entry)
    captured = capsys.readouterr()
    answer = json.loads(captured.out.splitlines()[-1])
    row: dict[str, object] = answer["models"][0]
    assert answer["ok"] == (status == 0)
    return status, row, captured.err


def test_tool_fetches_once_and_keeps_what_is_right(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = _entry(site.url + "/m")
    status, row, messages = _run(capsys, entry, tmp_path)
    assert (status, row["outcome"], row["sha256"]) == (0, "fetched", SHA256)
    assert "MIT, https://x.test/l" in messages
    assert _run(capsys, entry, tmp_path)[1]["outcome"] == "kept"
    assert len(site.script.asked) == 1
    (tmp_path / "tiny.onnx").write_bytes(b"damaged")
    assert _run(capsys, entry, tmp_path)[1]["outcome"] == "fetched"


def test_unrecorded_digest_is_pinned_by_the_first_fetch(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = _entry(site.url + "/m", sha256="")
    _, _, messages = _run(capsys, entry, tmp_path)
    assert "no SHA-256 is on record" in messages
    pin = Lock(tmp_path).pin("tiny")
    assert pin is not None
    assert pin.sha256 == SHA256
    site.script.body = BODY + b"changed upstream"
    status, row, _ = _run(capsys, entry, tmp_path, "--force")
    assert status == 1
    assert "is on record" in str(row["error"])
    assert (tmp_path / "tiny.onnx").read_bytes() == BODY


def test_agpl_model_needs_a_word_once(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = _entry(site.url + "/m", licence="AGPL-3.0")
    status, row, _ = _run(capsys, entry, tmp_path)
    assert status == 3
    assert "--accept-licence" in str(row["error"])
    assert site.script.asked == []
    assert _run(capsys, entry, tmp_path, "--accept-licence")[0] == 0
    assert _run(capsys, entry, tmp_path, "--force")[0] == 0


def test_offline_says_in_one_line_what_to_do_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "yolox_nano.onnx").write_bytes(b"x")
    status, row, messages = _run(capsys, _entry("http://127.0.0.1:9/m"), tmp_path)
    assert status == 4
    error = str(row["error"])
    assert "cannot reach 127.0.0.1" in error
    assert f"at {tmp_path / 'tiny.onnx'}" in error
    assert "--model yolox-nano" in error
    assert messages.count("\n") == 2  # the licence, and this


def test_damaged_lock_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fetched.json").write_text("[1")
    status, row, _ = _run(capsys, _entry("http://127.0.0.1:9/m"), tmp_path)
    assert status == 1
    assert "fetched.json is damaged" in str(row["error"])
