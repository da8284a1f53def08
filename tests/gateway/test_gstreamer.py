"""GStreamer's webrtcbin watches: all of it another implementation, with an RSA certificate."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
from aiortc import RTCCertificate
from aiortc.rtcdtlstransport import SRTP_PROFILES
from OpenSSL import SSL

from server.rtc.guard import WiderCertificate
from tests.fakes import FakeDetector
from tests.gateway.test_views import passes_on
from tests.gateway.watching import sending, streaming

pytestmark = pytest.mark.loopback

SYSTEM_PYTHON = "/usr/bin/python3"
PROGRAM = Path(__file__).with_name("gstreamer_viewer.py")
LOOK = (
    "import gi; gi.require_version('GstWebRTC', '1.0'); from gi.repository import Gst; "
    "Gst.init(None); names = ('webrtcbin', 'nicesrc', 'avdec_h264'); "
    "assert all(map(Gst.ElementFactory.find, names))"
)


@pytest.fixture(scope="module")
def program() -> str:
    """The viewer, where Debian's packages are."""
    try:
        looked = subprocess.run([SYSTEM_PYTHON, "-c", LOOK], capture_output=True, timeout=60)
    except OSError:
        looked = None
    if looked is None or looked.returncode:
        pytest.skip("GStreamer's webrtcbin is not installed; `make environment` as root does it")
    return str(PROGRAM)


@pytest.mark.parametrize("query", ["", "?view=data"])
async def test_webrtcbin_sees_the_stream(program: str, query: str) -> None:
    async with streaming(FakeDetector()) as server, sending(server, "cam"):
        await passes_on(server)
        viewer = await asyncio.create_subprocess_exec(
            SYSTEM_PYTHON, program, f"{server.url}/whep/cam{query}", "10",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        output, errors = await viewer.communicate()
        assert viewer.returncode == 0, errors.decode()
        seen = json.loads(output)
        assert seen["pictures"] >= 10
        assert seen["size"] == [320, 240]


def test_a_handshake_offers_suites_for_keys_of_curves_and_of_rsa() -> None:
    certificate = RTCCertificate.generateCertificate()
    wider = WiderCertificate(certificate._key, certificate._cert)
    assert wider.getFingerprints() == certificate.getFingerprints()
    names = SSL.Connection(wider._create_ssl_context(SRTP_PROFILES)).get_cipher_list()
    assert any(name.startswith("ECDHE-ECDSA") for name in names)
    assert any(name.startswith("ECDHE-RSA") for name in names)
