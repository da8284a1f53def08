"""What `server/rtc` takes for granted about aiortc and aioice, pinned.

An upgrade that touches any of it fails here, with the name of what to read again. When the
reading is done: adapt our part, run the loopback tests, then pin the new digest.
"""

import asyncio
import functools
import hashlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import aioice.ice
import aiortc.codecs
import aiortc.jitterbuffer
import aiortc.rate
import aiortc.rtcdtlstransport
import aiortc.rtcicetransport
import aiortc.rtcpeerconnection
import aiortc.rtcrtpreceiver
import aiortc.rtcrtptransceiver
import aiortc.rtp
import pytest
from aioice import Connection
from aiortc import RTCConfiguration, RTCPeerConnection

from server.rtc.guard import BoundedRtpRouter, GuardedDtlsTransport, WiderCertificate
from server.rtc.ice import GuardedStunProtocol, IceConnection, IceGatherer
from server.rtc.idle import IdleReceiver
from server.rtc.options import RtcOptions
from server.rtc.peer import PeerConnection
from server.rtc.receiver import RemoteVideoTrack, VideoReceiver

pytestmark = pytest.mark.unit

VERSIONS = {"aiortc": "1.16.0", "aioice": "0.13.0"}

# Replaced, overridden or leaned on: the digest of its source, and which of our modules to read
# beside it. `python -m tests.rtc.test_contract` prints the digests of what is installed.
SOURCES: dict[str, tuple[str, str]] = {
    "Connection.add_remote_candidate": (
        "d3a0826c92fa8ce69e627ea6d9870c3486f5bced964f0a0e9767619895c82921",
        "ice.py",
    ),
    "Connection.check_incoming": (
        "cb3e32bd47e5fa8284b06afa7cb22a1d361315ed2d451c3c9d838adc3f491c6d",
        "ice.py",
    ),
    "Connection.check_state": (
        "73e4bbf6effd6de1c12db7e631a6c5b9948b21a4d027f1590319f456042348cb",
        "ice.py",
    ),
    "Connection.close": (
        "25dcfac536f5f37c3113b3c73f2144643d9016bbadac1113846253c8dc29797d",
        "ice.py",
    ),
    "Connection.data_received": (
        "5631b17fab717d6b9a956b775d6f5580a50c2419dc6ef693286a98355e98a253",
        "ice.py",
    ),
    "Connection.get_component_candidates": (
        "118597a9fcb703f9950c2f2964e3e44423724576eda484ba6747b1610ccf4a2f",
        "ice.py",
    ),
    "Connection.query_consent": (
        "fe49173a650a378a4198daa132fe61cbc449974c0011e12db2854dd971367b2e",
        "ice.py",
    ),
    "Connection.recvfrom": (
        "676acc01e4a9a9da04d94d86092a81ba17f1ef77bed0322c8302e3436310e863",
        "ice.py",
    ),
    "JitterBuffer": (
        "17030fbb0982258d8d61611500b707370579994f222fae610c353c5de5b1ed59",
        "stock.py",
    ),
    "MediaStreamTrack.stop": (
        "b79a098f53603443d16d9323abfa8b8204de3ed5f1d391cabdca057164d86251",
        "remote_track.py",
    ),
    "RTCCertificate._create_ssl_context": (
        "aac625bdc264f0a6d4aebcb325a45941aaf753b6b4d33934d311e34344abad77",
        "guard.py",
    ),
    "RTCDtlsTransport.__run": (
        "24d63d929a104e16e20d0196590ee21cc41f9d569b134d2779b1d62d876e6815",
        "guard.py",
    ),
    "RTCDtlsTransport._do_handshake": (
        "0af5299c33352e6e061bf2147281ede4dc7b078665a24d291593483d4b48bdca",
        "guard.py",
    ),
    "RTCDtlsTransport._handle_rtcp_data": (
        "5469e786d77b37b25e0a6ca5b7808166d0ddd0175842d8354225ee46a2ca8004",
        "guard.py",
    ),
    "RTCDtlsTransport._handle_rtp_data": (
        "5def9061cc3da1f67db719e43b0b1ee242688f231eb963cf2cb5d9696abfc9e2",
        "guard.py",
    ),
    "RTCDtlsTransport._recv_next": (
        "998076720c05aa13faadff2dfa337f6964c171fa6791789a72693e1480c74102",
        "guard.py",
    ),
    "RTCDtlsTransport._set_state": (
        "385f5542ac247175e430b48f9c4cbbb1cd5230375df5611a6bf9ddf3368230cb",
        "guard.py",
    ),
    "RTCDtlsTransport.stop": (
        "44a8b3fc40aa9d7b2768f3b2c392c10a9ec5cd70928184ee2775457d2c334690",
        "guard.py",
    ),
    "RTCIceGatherer": (
        "3f69ea0b336d067e1dde16c510d5825587725bff9cb3bfb6bc00dbfccc773207",
        "ice.py",
    ),
    "RTCIceTransport": (
        "a2e2aeedaf0abf0ca7d5420e8ef2e71292c6b941a599a88c336b455571556b42",
        "ice.py",
    ),
    "RTCPeerConnection.__connect": (
        "9199a73a7cde47762890562b8772dc8d55b07fe5a0b9a0d9179bd7089c633065",
        "peer.py",
    ),
    "RTCPeerConnection.__createDtlsTransport": (
        "ad91de689a334df2bb7f0f86dd792434bc80b93d74180893bb730edc3f6748ad",
        "peer.py",
    ),
    "RTCPeerConnection.__createSctpTransport": (
        "f1155cfa69ec6e348d641d7d911f97ef6e242c24e45541aa874ed0b00c44deb0",
        "peer.py",
    ),
    "RTCPeerConnection.__createTransceiver": (
        "00201d6e03cc00f713d914365a46748e1e6c0b8f8d258d44480459356c898b91",
        "peer.py",
    ),
    "RTCPeerConnection.__init__": (
        "f5388aea637f0f219ec897d874278ee1022d345954807cbb550a71ed9919e0b8",
        "peer.py",
    ),
    "RTCPeerConnection.__remoteRtp": (
        "1dc79068e0cae573d5709182a4b55649d315ef5d87bec82af5ae3c4a0ce542d9",
        "receiver.py",
    ),
    "RTCPeerConnection.__updateConnectionState": (
        "737e50373bd636dddd9da4f18e8dd590d241667a279ecfa91a12b37cf12b9b8e",
        "peer.py",
    ),
    "RTCPeerConnection.close": (
        "7e2df1bb95ebce29149eb295eade0b2ecd4fe0587bdb0fb88e352a4cefccb6f7",
        "peer.py",
    ),
    "RTCPeerConnection.setRemoteDescription": (
        "42c5e2eb7ca58b5f7df4b7a7bc204b92997f1843c198a0d5684991a9219e18f9",
        "peer.py",
    ),
    "RTCRtpReceiver.__init__": (
        "3e3b7b5cefbaac6f32d31c024a5ecf70093b55e60db6a3b4f4f900400688ccb9",
        "receiver.py",
    ),
    "RTCRtpReceiver._handle_disconnect": (
        "8dfa058c843f92d50418ca3c6d2bf2b14c2737606d1067c12e6c81e4ac3324d1",
        "idle.py",
    ),
    "RTCRtpReceiver._handle_rtcp_packet": (
        "ec9f46214c3495b24a29f83538540c9e3ec788db183e3dad2078877549b4788c",
        "idle.py",
    ),
    "RTCRtpReceiver._handle_rtp_packet": (
        "4e54983d021a6336d80c29490f82f9a6dd531c0d3179b2daed818120c5ece238",
        "idle.py",
    ),
    "RTCRtpReceiver._set_rtcp_ssrc": (
        "3634d142251f11fc09ad0af6221e4ff5f728ddb8addbd3315b672bd29947869e",
        "receiver.py",
    ),
    "RTCRtpReceiver.getStats": (
        "1e497a789bed31433839b6706f38c7f56bc34cd09cbf6a44c4d0db4e18b99743",
        "receiver.py",
    ),
    "RTCRtpReceiver.receive": (
        "d6d8d8d7a0bf4e95f3fb7cb78cf275d0a5f50c4912e0cb8498272008779916ef",
        "idle.py",
    ),
    "RTCRtpReceiver.stop": (
        "63734b6894ce67a52f4df1022d30b5f635966f56dca91b9a2e9b54e90e4153aa",
        "idle.py",
    ),
    "RTCRtpTransceiver": (
        "008f7efb608430f2f0d8a472e9ee86c32e7e63ac83f4d7790c4221982604f680",
        "peer.py",
    ),
    "RemoteStreamTrack": (
        "a69be688b066c56937702a88e56bb2b7bd64452a7352cb8ac417ddd6f9d4b959",
        "receiver.py",
    ),
    "RemoteStreamTrack.recv": (
        "e572e045f1d6f41da4c21e2513333a6353d5857797b8a66967955cf9bf1a3b3f",
        "remote_track.py",
    ),
    "RtcpRtpfbPacket": (
        "9fec1a1a01c67a02964fa5af1e2138ff5124973d991b8ea7725f4534fad7633f",
        "feedback.py",
    ),
    "RtpRouter.route_rtp": (
        "e4bcc08d181438b785e79c61fd8a803f2b9ed6163efd9b317d120d672d91863d",
        "guard.py",
    ),
    "StunProtocol.datagram_received": (
        "ff4c8b910d45fb3a9e50c4391fe5cbaba33dcba669fea9e847e19a5c99b9bfbb",
        "ice.py",
    ),
    "aioice.Connection.__init__": (
        "a99ae9c97fc66a2ef38e4200009886edfd83a6cb78601a7c8925b94b2bd18b31",
        "ice.py",
    ),
    "Connection.check_complete": (
        "52f939709eabc0abc0b4aa20c262f3107235e98b433261d2bd3881c06257db92",
        "ice.py",
    ),
    "aioice.Connection.check_start": (
        "7de056d252f46a155c8b9c2061077360d2aa6b0dc0ca7f4f5a4fa2fec2417bca",
        "ice.py",
    ),
    "Connection.connect": (
        "da51be46190141ee23c03ab8d77c030b45e412b6430369790ba4665a7a7886d2",
        "ice.py",
    ),
    "Connection.gather_candidates": (
        "d33db28d4d1e49ffe863eb34098e4a4a73a7cc5725e0da821e1fb94d7ade8cbb",
        "ice.py",
    ),
    "aioice.Connection.request_received": (
        "dcdc9a3862c1a0b4d20d99c8836f3246d6214045056a4923bdfd9ff26bb8bbf2",
        "ice.py",
    ),
    "aioice.StunProtocol": (
        "a6e5692f3cf7578ef9f44264cd0d51556ef22647d46473d6f7320332fd77493a",
        "ice.py",
    ),
    "aioice.Connection.sendto": (
        "bf162ec03bdce2cc2b9602cd47a03aa70b15b45383da4d0618090e65179f7e85",
        "sender.py",
    ),
    "aioice.relayed_candidate": (
        "271e25be8724ce381b2bdfe17c1518f314f3588927b34254f5830f98676dcc25",
        "ice.py",
    ),
    "aioice.server_reflexive_candidate": (
        "76dd5558471714f789332b217dda396ba2d7f398be0bba2a85ed2a0dceaa5c54",
        "ice.py",
    ),
    "unwrap_rtx": (
        "9b428a97cc83607fcb9701ad7b232a51b0399d37ebf12d60b3a1828f567e0b06",
        "receiver.py",
    ),
}

# Attributes that we read or write though their names say that we should not.
PRIVATE_PEER = (
    "_RTCPeerConnection__certificates",
    "_RTCPeerConnection__dtlsTransports",
    "_RTCPeerConnection__iceTransports",
    "_RTCPeerConnection__isClosed",
    "_RTCPeerConnection__remoteDescription",
    "_RTCPeerConnection__sctp",
    "_RTCPeerConnection__stream_id",
    "_RTCPeerConnection__transceivers",
    "_RTCPeerConnection__updateConnectionState",
    "_RTCPeerConnection__updateIceConnectionState",
    "_RTCPeerConnection__updateIceGatheringState",
)
PRIVATE_CONNECTION = (
    "_check_list",
    "_check_list_done",
    "_check_list_state",
    "_early_checks",
    "_early_checks_done",
    "_local_candidates_end",
    "_pair_remote_candidate",
    "_remote_candidates_expected",
    "_unfreeze_initial",
    "_closing",
    "_nominated",
    "_protocols",
    "_query_consent_task",
    "_queue",
    "_remote_candidates",
    "_transport_policy",
    "local_password",
    "remote_password",
    "stun_server",
    "turn_server",
    "turn_username",
    "turn_password",
    "turn_ssl",
    "turn_transport",
)

OVERRIDES = [
    (PeerConnection, "_RTCPeerConnection__connect"),
    (PeerConnection, "_RTCPeerConnection__createDtlsTransport"),
    (PeerConnection, "_RTCPeerConnection__createTransceiver"),
    (PeerConnection, "close"),
    (PeerConnection, "setRemoteDescription"),
    (VideoReceiver, "_handle_disconnect"),
    (VideoReceiver, "_handle_rtcp_packet"),
    (VideoReceiver, "_handle_rtp_packet"),
    (VideoReceiver, "_set_rtcp_ssrc"),
    (VideoReceiver, "getStats"),
    (VideoReceiver, "receive"),
    (VideoReceiver, "stop"),
    (IdleReceiver, "_handle_disconnect"),
    (IdleReceiver, "_handle_rtcp_packet"),
    (IdleReceiver, "_handle_rtp_packet"),
    (IdleReceiver, "receive"),
    (IdleReceiver, "stop"),
    (RemoteVideoTrack, "recv"),
    (RemoteVideoTrack, "stop"),
    (GuardedDtlsTransport, "_handle_rtcp_data"),
    (GuardedDtlsTransport, "_handle_rtp_data"),
    (GuardedDtlsTransport, "_recv_next"),
    (GuardedDtlsTransport, "_set_state"),
    (BoundedRtpRouter, "route_rtp"),
    (WiderCertificate, "_create_ssl_context"),
    (IceConnection, "add_remote_candidate"),
    (IceConnection, "check_complete"),
    (IceConnection, "check_incoming"),
    (IceConnection, "check_state"),
    (IceConnection, "close"),
    (IceConnection, "connect"),
    (IceConnection, "data_received"),
    (IceConnection, "gather_candidates"),
    (IceConnection, "get_component_candidates"),
    (IceConnection, "query_consent"),
    (IceConnection, "recvfrom"),
    (GuardedStunProtocol, "datagram_received"),
]

# What is not overridden, but would change what our code means if it changed.
LEANED_ON: list[tuple[str, Any, str]] = [
    ("RTCPeerConnection.__init__", RTCPeerConnection.__init__, "peer.py"),
    (
        "RTCPeerConnection.__updateConnectionState",
        vars(RTCPeerConnection)["_RTCPeerConnection__updateConnectionState"],
        "peer.py",
    ),
    (
        "RTCPeerConnection.__createSctpTransport",
        vars(RTCPeerConnection)["_RTCPeerConnection__createSctpTransport"],
        "peer.py",
    ),
    (
        "RTCPeerConnection.__remoteRtp",
        vars(RTCPeerConnection)["_RTCPeerConnection__remoteRtp"],
        "receiver.py",
    ),
    ("RTCRtpTransceiver", aiortc.rtcrtptransceiver.RTCRtpTransceiver, "peer.py"),
    ("RTCRtpReceiver.__init__", aiortc.rtcrtpreceiver.RTCRtpReceiver.__init__, "receiver.py"),
    ("RemoteStreamTrack", aiortc.rtcrtpreceiver.RemoteStreamTrack, "receiver.py"),
    ("unwrap_rtx", aiortc.rtp.unwrap_rtx, "receiver.py"),
    ("RtcpRtpfbPacket", aiortc.rtp.RtcpRtpfbPacket, "feedback.py"),
    ("JitterBuffer", aiortc.jitterbuffer.JitterBuffer, "stock.py"),
    (
        "RTCDtlsTransport.__run",
        vars(aiortc.rtcdtlstransport.RTCDtlsTransport)["_RTCDtlsTransport__run"],
        "guard.py",
    ),
    (
        "RTCDtlsTransport._do_handshake",
        aiortc.rtcdtlstransport.RTCDtlsTransport._do_handshake,
        "guard.py",
    ),
    ("RTCDtlsTransport.stop", aiortc.rtcdtlstransport.RTCDtlsTransport.stop, "guard.py"),
    ("RTCIceGatherer", aiortc.rtcicetransport.RTCIceGatherer, "ice.py"),
    ("RTCIceTransport", aiortc.rtcicetransport.RTCIceTransport, "ice.py"),
    ("aioice.Connection.__init__", Connection.__init__, "ice.py"),
    ("aioice.Connection.sendto", Connection.sendto, "sender.py"),
    ("aioice.Connection.check_start", Connection.check_start, "ice.py"),
    ("aioice.Connection.request_received", Connection.request_received, "ice.py"),
    ("aioice.StunProtocol", aioice.ice.StunProtocol, "ice.py"),
    ("aioice.relayed_candidate", aioice.ice.relayed_candidate, "ice.py"),
    ("aioice.server_reflexive_candidate", aioice.ice.server_reflexive_candidate, "ice.py"),
]


def base_of(ours: type, name: str) -> Callable[..., Any]:
    """The method that ours replaces, or a failure that says so."""
    for base in ours.__mro__[1:]:
        if name in vars(base):
            found: Callable[..., Any] = vars(base)[name]
            return found
    pytest.fail(f"{ours.__name__}.{name} overrides nothing any more: read {ours.__module__} again")


def digest(thing: Any) -> str:
    return hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()


@functools.cache
def installed() -> dict[str, tuple[str, str]]:
    """What `SOURCES` should hold for the installed versions."""
    found: dict[str, tuple[str, str]] = {}
    for ours, name in OVERRIDES:
        base = base_of(ours, name)
        module = ours.__module__.rsplit(".", 1)[1] + ".py"
        found[base.__qualname__] = (digest(base), module)
    for name, thing, module in LEANED_ON:
        found[name] = (digest(thing), module)
    return found


@pytest.mark.parametrize("package", VERSIONS)
def test_the_versions_are_those_that_were_read(package: str) -> None:
    assert version(package) == VERSIONS[package], (
        f"{package} was upgraded: read the notes in server/rtc/README.md, run tests/rtc, "
        f"and pin the new version here"
    )


@pytest.mark.parametrize("name", [*SOURCES])
def test_what_we_replace_or_lean_on_is_as_it_was_read(name: str) -> None:
    found = installed().get(name)
    assert found is not None, f"{name} is gone: read it again beside server/rtc/{SOURCES[name][1]}"
    assert found[0] == SOURCES[name][0], (
        f"the source of {name} changed: read it again beside server/rtc/{SOURCES[name][1]}, then "
        f"pin {found[0]}"
    )


def test_the_table_is_complete() -> None:
    assert set(installed()) == set(SOURCES)


@pytest.mark.parametrize(("ours", "name"), OVERRIDES)
def test_overrides_take_what_the_base_takes(ours: type, name: str) -> None:
    theirs = inspect.signature(base_of(ours, name)).parameters
    mine = inspect.signature(getattr(ours, name)).parameters
    assert list(mine) == list(theirs)
    assert inspect.iscoroutinefunction(getattr(ours, name)) == inspect.iscoroutinefunction(
        base_of(ours, name)
    )


async def test_private_names_exist() -> None:
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    missing = [name for name in PRIVATE_PEER if not hasattr(peer, name)]
    await peer.close()
    connection = Connection(ice_controlling=False)
    missing += [name for name in PRIVATE_CONNECTION if not hasattr(connection, name)]
    await connection.close()
    assert missing == [], f"read server/rtc/peer.py and ice.py again for: {', '.join(missing)}"
    assert isinstance(connection._queue, asyncio.Queue)


async def test_the_gatherer_still_makes_the_connection_that_ours_replaces() -> None:
    gatherer = IceGatherer(RtcOptions())
    assert type(gatherer._connection) is IceConnection
    parameters = gatherer.getLocalParameters()
    assert parameters.usernameFragment == gatherer.connection.local_username
    assert parameters.password == gatherer.connection.local_password
    await gatherer.connection.close()


if __name__ == "__main__":
    for key, (value, module) in sorted(installed().items()):
        print(f'    "{key}": (\n        "{value}",\n        "{module}",\n    ),')
