"""The thread of one source lives as long as it is wanted, whatever the source does to it."""

import logging
import socket

import pytest

from server.pull.address import Address, check_host, parse_address
from server.pull.picture_thread import PictureThread
from server.pull.reader import Reader
from server.settings import SourceSettings
from tests.serving import until

pytestmark = pytest.mark.unit


async def test_a_source_that_is_away_for_days_is_still_tried() -> None:
    # As many tries as a camera that is off gets in seven hours.
    tries = 1030
    missing = Address("file", "file", "file:/nowhere/clip.mp4", "file:clip.mp4")
    reader = Reader(
        "door", missing, SourceSettings(source_retry_s=0.0), lambda *picture: None, trusted=True
    )
    reader.start()
    try:
        await until(lambda: reader.counters.attempts > tries or not reader.is_alive)
        assert reader.is_alive
    finally:
        reader.request_stop()
        assert reader.join(5.0)


def test_a_thread_that_fails_says_so_and_counts_as_ended(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(PictureThread):
        def _run(self) -> None:
            self.counters.state = "playing"
            raise ZeroDivisionError("no pictures")

    broken = Broken("door", lambda *picture: None)
    with caplog.at_level(logging.ERROR):
        broken.start()
        assert broken.join(5.0)
    assert broken.counters.state == "ended"
    assert broken.counters.last_error == "failed: ZeroDivisionError"
    assert "pull door" in caplog.text


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
def test_a_host_that_no_name_server_could_know_is_one_that_is_not_known(host: str) -> None:
    address = parse_address(f"rtsp://{host}/x", SourceSettings())
    with pytest.raises(socket.gaierror):
        check_host(address, ())
