"""What may be opened, and what of it is shown."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ForbiddenError, RequestError, SettingsError, UnprocessableError
from server.pull.address import check_host, confined, parse_address, parse_sources
from server.pull.pulls import sources_of
from server.pull.reader import Reader
from server.settings import SourceSettings
from tests.sources.cameras import write_clip

pytestmark = pytest.mark.unit

OPEN = SourceSettings()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rtsp",
        "rtsp:",
        "rtsp:camera/1",
        "rtsp://",
        "rtsp:///path",
        "RTSP://camera/1",
        "rtsp://camera:port/1",
        "rtsp://camera:99999/1",
        "rtsp://camera/1#part",
        "rtsp://camera/1 -i /etc/passwd",
        "rtsp://camera/1\n",
        "rtsp://cam\x00era/1",
        "rtsp://kämera/1",
        "x" * 3000,
        # FFmpeg's own: another protocol, a part of a file, files joined, a device that makes noise
        "concat:/etc/passwd|/etc/hosts",
        "subfile,,start,0,end,0,,:/etc/passwd",
        "async:file:/etc/passwd",
        "cache:http://camera/",
        "crypto:file:/etc/passwd",
        "data:text/plain,hello",
        "pipe:0",
        "fd:",
        "tee:a",
        "lavfi:testsrc",
        "gopher://camera/1",
        "ftp://camera/1",
        "unix:/run/socket",
        "tcp://camera:80",
        "udp://239.0.0.1:5000",
        "rtp://camera:5000",
        "/etc/passwd",
        "../clip.mp4",
        "-i",
        # what is none of ours
        "device:/dev/mem",
        "device:/dev/../etc/passwd",
        "device:/dev/video0/../../etc/passwd",
        "device:",
        "demo:",
    ],
)
def test_hostile_and_broken_addresses_are_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(UnprocessableError, match=r"^source: ") as refused:
        parse_address(text, SourceSettings(source_folder="/"))
    assert len(text) < 8 or text not in str(refused.value)


@given(st.text(max_size=60))
def test_no_text_gets_through_that_is_not_of_a_known_kind(text: str) -> None:
    try:
        address = parse_address(text, OPEN)
    except UnprocessableError:
        return
    assert text.startswith(tuple(f"{scheme}:" for scheme in OPEN.source_schemes)) or text == "demo"
    assert "protocol_whitelist" in address.options or address.kind == "demo"


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://admin:secret@camera.lan:554/live/secret?password=secret",
        "rtsp+udp://secret@camera.lan:554/user=admin_password=secret_channel=1.sdp",
        "rtmp://camera.lan:554/live/secret",
        "https://u:secret@camera.lan:554/secret.m3u8?token=secret",
        "srt://camera.lan:554?passphrase=secret",
    ],
)
def test_only_scheme_and_host_are_shown(text: str) -> None:
    address = parse_address(text, OPEN)
    scheme = text.partition(":")[0]
    assert address.shown == f"{scheme}://camera.lan:554/…"
    # Nor does a value that is logged by mistake tell more.
    assert "secret" not in repr(address)
    assert "secret" in address.url


def test_udp_is_a_choice_of_the_address() -> None:
    address = parse_address("rtsp+udp://camera/1", OPEN)
    assert (address.url, address.options["rtsp_transport"]) == ("rtsp://camera/1", "udp")
    address = parse_address("rtsp://camera/1", OPEN)
    assert (address.url, address.options["rtsp_transport"]) == ("rtsp://camera/1", "tcp")


def test_schemes_can_be_taken_away() -> None:
    only_rtsp = SourceSettings(source_schemes=("rtsp",), source_folder="/")
    parse_address("rtsp://camera/1", only_rtsp)
    for text in ("rtsp+udp://camera/1", "http://camera/1", "file:etc/hosts", "device:video0"):
        with pytest.raises(UnprocessableError, match="scheme is not one of rtsp "):
            parse_address(text, only_rtsp)


@pytest.mark.parametrize("name", ["clip.mp4", "sub/clip.mp4", "//clip.mp4", "sub/../clip.mp4"])
def test_files_below_the_folder_are_opened_by_their_whole_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    for path in (tmp_path / "clip.mp4", tmp_path / "sub" / "clip.mp4"):
        path.write_bytes(b"x")
    address = parse_address(f"file:{name}", SourceSettings(source_folder=str(tmp_path)))
    assert address.url.startswith(f"file:{tmp_path.resolve()}/")
    assert address.options["protocol_whitelist"] == "file"
    assert address.shown == "file:clip.mp4"


@pytest.mark.parametrize(
    "name",
    ["../secret.mp4", "//../secret.mp4", "link.mp4", "folder/secret.mp4", ".", "", "none.mp4", "~"],
)
def test_files_elsewhere_are_refused_as_if_they_were_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.mp4").write_bytes(b"x")
    folder = tmp_path / "open"
    folder.mkdir()
    (folder / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "folder").symlink_to(tmp_path)
    settings = SourceSettings(source_folder=str(folder))
    with pytest.raises(UnprocessableError, match=r"^source: no such file below source_folder$"):
        parse_address(f"file:{name}", settings)
    with pytest.raises(UnprocessableError, match="no such file"):
        parse_address(f"file:{tmp_path}/secret.mp4", settings)


def test_without_a_folder_no_file_is_opened() -> None:
    with pytest.raises(UnprocessableError, match="source_folder, which is not set"):
        parse_address("file:/etc/hosts", OPEN)


@pytest.mark.parametrize(
    ("ip", "allowed", "is_open"),
    [
        ("192.168.1.20", (), True),
        ("10.0.0.5", (), True),
        ("fd00::5", (), True),
        ("8.8.8.8", (), True),
        ("127.0.0.1", (), False),
        ("127.8.8.8", (), False),
        ("::1", (), False),
        ("::ffff:127.0.0.1", (), False),
        ("169.254.169.254", (), False),
        ("fd00:ec2::254", (), False),
        ("100.100.100.200", (), False),
        ("100.100.100.201", (), True),
        ("fe80::1%eth0", (), False),
        ("0.0.0.0", (), False),
        ("::", (), False),
        ("239.1.1.1", (), False),
        ("255.255.255.255", (), False),
        ("127.0.0.1", ("camera.lan",), True),
        ("127.0.0.1", ("127.0.0.0/8",), True),
        ("::1", ("127.0.0.0/8", "::1"), True),
        ("169.254.1.2", ("other.lan", "10.0.0.0/8"), False),
    ],
)
def test_hosts_that_only_this_machine_reaches_are_closed_unless_named(
    ip: str, allowed: tuple[str, ...], is_open: bool
) -> None:
    address = parse_address("rtsp://camera.lan/1", OPEN)
    if is_open:
        check_host(address, allowed, lambda _: [ip])
        return
    with pytest.raises(ForbiddenError, match="source_hosts"):
        check_host(address, allowed, lambda _: [ip])
    with pytest.raises(ForbiddenError):
        check_host(address, allowed, lambda _: ["192.168.1.20", ip])


def test_numbers_that_mean_this_machine_are_looked_up_like_names() -> None:
    for host in ("127.1", "2130706433", "0x7f000001", "localhost"):
        with pytest.raises((ForbiddenError, OSError)):
            check_host(parse_address(f"rtsp://{host}/1", OPEN), ())


def test_a_callers_play_list_and_redirects_are_not_followed_unless_its_host_is_named() -> None:
    address = parse_address("http://camera.lan/list.m3u8", OPEN)
    assert "hls" in address.options["format_whitelist"]
    options = confined(address, ())
    assert "hls" not in options["format_whitelist"]
    assert options["max_redirects"] == "0"
    assert confined(address, ("camera.lan",)) == address.options


class Redirecting(BaseHTTPRequestHandler):
    """Sends everybody to the file, which is asked for only when the redirect is followed."""

    clip = b""
    asked: tuple[str, ...] = ()

    def do_GET(self) -> None:
        type(self).asked += (self.path,)
        if self.path == "/clip.ts":
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.clip)))
            self.end_headers()
            self.wfile.write(self.clip)
            return
        self.send_response(302)
        self.send_header("Location", "/clip.ts")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def redirecting(tmp_path: Path) -> Iterator[tuple[int, type[Redirecting]]]:
    clip = write_clip(tmp_path / "clip.ts", 3).read_bytes()
    handler = type("Handler", (Redirecting,), {"clip": clip, "asked": ()})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, handler
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.mark.parametrize("named", [True, False])
def test_ffmpeg_itself_follows_a_redirect_for_the_operator_alone(
    redirecting: tuple[int, type[Redirecting]], named: bool
) -> None:
    port, handler = redirecting
    # The network is open in both cases; the name says whose play lists and redirects are trusted.
    hosts = ("127.0.0.0/8", "127.0.0.1") if named else ("127.0.0.0/8",)
    settings = SourceSettings(source_hosts=hosts, source_timeout_s=3, source_retry_s=60)
    address = parse_address(f"http://127.0.0.1:{port}/moved", settings)
    came = threading.Event()
    reader = Reader("test", address, settings, lambda *_: came.set(), trusted=False)
    reader.start()
    try:
        if named:
            assert came.wait(15)
        else:
            deadline = threading.Event()
            for _ in range(300):
                if reader.counters.last_error:
                    break
                deadline.wait(0.05)
            assert reader.counters.last_error
            assert handler.asked == ("/moved",)
    finally:
        reader.request_stop()
        assert reader.join(10)
    assert ("/clip.ts" in handler.asked) is named


def test_rows_of_the_settings_are_read_by_name() -> None:
    assert parse_sources(("a=rtsp://x/1?b=c", " d = demo ")) == {"a": "rtsp://x/1?b=c", "d": "demo"}
    for rows in (("rtsp://x/1",), ("=demo",), ("a=demo", "a=demo")):
        with pytest.raises(SettingsError, match=r"^sources: entry [12] is not another name=addr"):
            sources_of(SourceSettings(sources=rows))


def test_refusals_are_the_callers_and_no_fault_of_ours() -> None:
    assert issubclass(UnprocessableError, RequestError)
    assert (UnprocessableError.status, ForbiddenError.status) == (422, 403)
