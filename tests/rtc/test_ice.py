"""Gathering in bounded time within the port range; a peer that vanishes is noticed."""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest
from aioice import Candidate, mdns, stun
from aioice.ice import StunProtocol, get_host_addresses
from aiortc import RTCSessionDescription

from server.clock import NS_PER_S
from server.errors import UnavailableError
from server.rtc import addresses
from server.rtc.ice import MAX_REMOTE_CANDIDATES, IceConnection, IceGatherer
from server.rtc.options import IceServer, RtcOptions
from server.rtc.peer import PeerConnection
from tests.rtc.peers import DEADLINE_S, Camera, calling, executor, reaches, stock_peer

pytestmark = pytest.mark.loopback

StunSend = Callable[[stun.Message, tuple[str, int]], None]

OPTIONS = RtcOptions(video_codecs=("VP8",))
HOST = (get_host_addresses(use_ipv4=True, use_ipv6=False) or ["127.0.0.1"])[0]


@contextlib.asynccontextmanager
async def gathered(options: RtcOptions) -> AsyncIterator[IceGatherer]:
    """A gatherer that has gathered; its sockets are closed afterwards."""
    gatherer = IceGatherer(options)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await gatherer.gather()
        yield gatherer
    finally:
        await gatherer.connection.close()


def free_range(count: int) -> tuple[int, int]:
    """Neighbouring UDP ports that were free a moment ago."""
    for first in range(42_000, 60_000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(bound(port))
            except OSError:
                continue
            return first, first + count - 1
    pytest.fail("no free ports")


@contextlib.contextmanager
def bound(port: int) -> Iterator[None]:
    """All of this machine's addresses occupied at one UDP port."""
    with contextlib.ExitStack() as stack:
        for address in [
            *(get_host_addresses(use_ipv4=True, use_ipv6=True)),
            "127.0.0.1",
        ]:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            opened = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            opened.bind((address, port))
        yield


def test_addresses_are_listed_anew_after_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ["192.0.2.1"]
    monkeypatch.setattr(addresses, "get_host_addresses", lambda **_: list(there))
    clock_ns = [NS_PER_S]
    recent = addresses.RecentAddresses(lambda: clock_ns[0])
    assert recent.get() == ["192.0.2.1"]
    there[:] = ["192.0.2.2"]
    clock_ns[0] += addresses.KEPT_NS - 1
    assert recent.get() == ["192.0.2.1"]
    clock_ns[0] += 1
    assert recent.get() == ["192.0.2.2"]


async def test_nobody_outside_is_asked() -> None:
    async with gathered(OPTIONS) as gatherer:
        assert gatherer.connection.stun_server is None
        assert gatherer.connection.turn_server is None
        assert {candidate.type for candidate in gatherer.getLocalCandidates()} == {"host"}


async def test_ports_come_from_the_range_until_it_is_exhausted() -> None:
    first, last = free_range(3)
    options = replace(OPTIONS, port_range=(first, last))
    used: list[int] = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            gatherer = await stack.enter_async_context(gathered(options))
            used += {candidate.port for candidate in gatherer.getLocalCandidates()}
        assert set(used) == set(range(first, last + 1))
        with pytest.raises(UnavailableError, match=rf"port_range: all 3 .* {first}-{last}"):
            await stack.enter_async_context(gathered(options))
    # What was closed is free again.
    async with gathered(options) as gatherer:
        assert gatherer.getLocalCandidates()


async def test_a_port_in_use_is_passed_over() -> None:
    first, last = free_range(2)
    with bound(first):
        for _ in range(4):
            async with gathered(replace(OPTIONS, port_range=(first, last))) as gatherer:
                assert {candidate.port for candidate in gatherer.getLocalCandidates()} == {last}


async def test_a_peer_without_free_port_says_so_and_leaves_nothing() -> None:
    first, last = free_range(1)
    with bound(first), executor() as pool:
        peer = PeerConnection(replace(OPTIONS, port_range=(first, last)), pool)
        peer.addTransceiver("video")
        with pytest.raises(UnavailableError) as caught:
            await peer.setLocalDescription(await peer.createOffer())
        assert caught.value.retry_after_s > 0
        assert await peer.close_within(DEADLINE_S) == ()


async def test_an_offer_that_is_given_up_while_it_gathers_leaves_nothing_behind() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HOST, 0))
        silent.setblocking(False)
        host, port = silent.getsockname()
        servers = (IceServer((f"turn:{host}:{port}",), "name", "word"),)
        gatherer = IceGatherer(replace(OPTIONS, ice_servers=servers, gather_timeout_s=10.0))
        before = asyncio.all_tasks()
        gathering = asyncio.create_task(gatherer.gather())
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.get_running_loop().sock_recv(silent, 2048)
        gathering.cancel()
        await asyncio.wait([gathering])
        await gatherer.connection.close()
        # A cancelled task ends in the loop's next turns; one that asks on, after 40 s.
        if left := asyncio.all_tasks() - before:
            await asyncio.wait(left, timeout=2.0)
        assert asyncio.all_tasks() - before == set()


@pytest.mark.parametrize("scheme", ["stun:{}:{}", "turn:{}:{}", "turn:{}:{}?transport=tcp"])
async def test_servers_that_never_answer_do_not_hold_the_answer_up(scheme: str) -> None:
    kind = socket.SOCK_STREAM if "tcp" in scheme else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as silent:
        silent.bind((HOST, 0))
        if kind == socket.SOCK_STREAM:
            silent.listen()
        url = scheme.format(*silent.getsockname())
        options = replace(
            OPTIONS, gather_timeout_s=0.1, ice_servers=(IceServer((url,), "name", "secret"),)
        )
        async with gathered(options) as gatherer:
            assert {candidate.type for candidate in gatherer.getLocalCandidates()} == {"host"}


async def test_loopback_is_offered_when_asked_for() -> None:
    async with gathered(replace(OPTIONS, loopback_candidates=True)) as gatherer:
        addresses = [candidate.ip for candidate in gatherer.getLocalCandidates()]
    assert addresses.count("127.0.0.1") == 1


async def test_loopback_is_offered_when_there_is_nothing_else() -> None:
    connection = IceConnection(options=OPTIONS)
    try:
        [candidate] = await connection.get_component_candidates(1, [])
        assert candidate.host == "127.0.0.1"
    finally:
        await connection.close()


def remote(host: str, port: int = 9) -> Candidate:
    return Candidate("1", 1, "udp", 1, host, port, "host")


async def test_names_are_resolved_beside_the_answer() -> None:
    try:
        await (await mdns.create_mdns_protocol()).close()
    except OSError as error:
        pytest.skip(f"no mDNS on this machine: {error}")
    connection = IceConnection(options=OPTIONS)
    try:
        await connection.add_remote_candidate(remote("0b9b0b9b-nobody.local"))
        await connection.add_remote_candidate(None)
        # It returned although the name is still being looked up.
        [looking_up] = connection._resolving
        assert looking_up is not None
        assert not looking_up.done()
        assert not connection._remote_candidates_end
    finally:
        async with asyncio.timeout(DEADLINE_S):
            await connection.close()
    assert not connection._resolving


async def test_remote_candidates_are_bounded() -> None:
    connection = IceConnection(options=OPTIONS)
    try:
        for port in range(1, 3 * MAX_REMOTE_CANDIDATES):
            await connection.add_remote_candidate(remote("192.0.2.77", port))
        assert len(connection.remote_candidates) == MAX_REMOTE_CANDIDATES
        assert connection.rejections.counts["candidates"] == 2 * MAX_REMOTE_CANDIDATES - 1
    finally:
        await connection.close()


async def test_an_offer_with_names_only_connects_by_the_peer_s_own_checks() -> None:
    with executor() as pool:
        near, far = PeerConnection(OPTIONS, pool), stock_peer()
        camera = Camera()
        far.addTrack(camera)
        try:
            await far.setLocalDescription(await far.createOffer())
            hidden = re.sub(
                r"(a=candidate:\S+ 1 udp \d+) \S+",
                r"\1 5f1d3a0c-hidden.local",
                far.localDescription.sdp,
            )
            assert "hidden.local" in hidden
            await near.setRemoteDescription(RTCSessionDescription(hidden, "offer"))
            await near.setLocalDescription(await near.createAnswer())
            await far.setRemoteDescription(near.localDescription)
            await reaches(near, "connected")
        finally:
            camera.stop()
            assert await near.close_within(DEADLINE_S) == ()
            await far.close()


async def test_a_vanished_peer_is_noticed() -> None:
    async with calling(OPTIONS) as call:
        [connection] = call.near._connections()
        connection.consent_interval_s = 0.05
        [far_connection] = call.far._connections()  # type: ignore[attr-defined]
        far_connection.cut()
        await reaches(call.near, "closed")


async def test_answers_that_take_600_ms_are_answers() -> None:
    async with calling(OPTIONS) as call:
        [connection] = call.near._connections()
        connection.consent_interval_s = 0.05
        [far_connection] = call.far._connections()  # type: ignore[attr-defined]
        loop = asyncio.get_running_loop()
        for protocol in far_connection._protocols:
            send = protocol.send_stun

            def late(
                message: stun.Message,
                address: tuple[str, int],
                send: StunSend = send,
            ) -> None:
                loop.call_later(0.6, send, message, address)

            protocol.send_stun = late
        answers: set[int] = set()
        async with asyncio.timeout(DEADLINE_S):
            while len(answers) < 5:
                answers.add(connection.rtt_ns)
                await asyncio.sleep(0.05)
        assert max(answers) > 100_000_000
        assert call.near.connectionState == "connected"


async def test_an_authenticated_flood_of_sources_is_bounded() -> None:
    async with calling(OPTIONS) as call:
        [connection] = call.near._connections()
        protocol = connection._protocols[0]
        assert isinstance(protocol, StunProtocol)
        message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        message.attributes["PRIORITY"] = 1
        for port in range(1024, 1824):
            connection.check_incoming(message, ("127.0.0.1", port), protocol)
        assert len(connection._check_list) <= 256
        assert connection.rejections.counts["candidates"] > 0
        await call.goes_on()


async def test_an_announced_address_is_offered_at_the_port_of_ours() -> None:
    async with gathered(replace(OPTIONS, announced=("203.0.113.7",))) as gatherer:
        candidates = gatherer.getLocalCandidates()
        own = {each.port for each in candidates if each.ip != "203.0.113.7" and ":" not in each.ip}
        announced = {each.port for each in candidates if each.ip == "203.0.113.7"}
        assert announced
        assert announced == own
