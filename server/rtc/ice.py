"""ICE that asks nobody outside, answers in bounded time and listens to proven peers only.

Changes to aioice: the source filter and bounded queue (`datagram_guard`), the same filter in the
system (`socket_filter`), the port range, the bound on gathering, mDNS candidates resolved beside
the answer, consent (`fast_consent`).
"""

import asyncio
import errno
import ipaddress
import logging
import random
import socket
import struct
from collections import deque
from typing import Any, cast

from aioice import Candidate, TransportPolicy, mdns, stun
from aioice.candidate import candidate_foundation, candidate_priority
from aioice.ice import (
    ICE_COMPLETED,
    CandidatePair,
    Connection,
    StunProtocol,
    get_or_create_mdns_protocol,
    relayed_candidate,
    server_reflexive_candidate,
)
from aiortc import RTCIceGatherer, RTCIceServer

from server.clock import now_ns
from server.errors import UnavailableError
from server.rtc import socket_filter
from server.rtc.addresses import LOOPBACK, RecentAddresses
from server.rtc.options import RtcOptions
from server.rtc.rejections import Rejections
from server.rtc.socket_filter import MAX_DTLS_BYTES, MAX_RTP_BYTES

logger = logging.getLogger(__name__)

# What the system lets wait, as far as it allows so much (net.core.rmem_max): of 10,000 datagrams of
# 2 kB a second from a stranger a quarter overflowed a buffer of 256 KiB on a busy machine, the
# peer's own among them; of this one it were 3 and 14 % in two runs.
RECEIVE_BUFFER_BYTES = 1_048_576

MAX_REMOTE_CANDIDATES = 32
MAX_PAIRS = 256

# The pace of connectivity checks, Ta of RFC 8445; aioice's own.
CHECK_INTERVAL_S = 0.02

# Media that comes from another of the peer's addresses, while its selected one was silent for so
# long, tells that the peer has moved: behind a NAT that forgot it, or to another network.
MOVED_AFTER_NS = 300_000_000

CONSENT_FAILURES = 3
# Two tries, 0.5 s and 1 s: an answer may take 1.5 s.
CONSENT_RETRANSMISSIONS = 1
RTT_SMOOTHING = 0.25

PORT_RETRY_AFTER_S = 5
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
RECENT = RecentAddresses()

_Address = tuple[str, int]


class IceConnection(Connection):
    """aioice's connection with a filter before its queue. Loop only.

    Bound: `options.datagram_queue_packets`, the newest is dropped, counted as `overflow`.
    """

    consent_interval_s = 1.0

    def __init__(self, *, options: RtcOptions, **arguments: Any) -> None:
        super().__init__(ice_controlling=False, **arguments)
        self._options = options
        self.rejections = Rejections(repr(self))
        self.last_check_at_ns = 0
        """Last authenticated STUN message from the peer."""
        self.rtt_ns = 0
        """Smoothed; 0 until measured."""
        self.datagram_received_at_ns = 0
        """When the datagram that `recv` gave last had arrived."""
        self._last_arrival_at_ns = 0
        self._arrivals_ns: deque[int] = deque()
        self._proven: set[tuple[StunProtocol, _Address]] = set()
        """Sources that know the ICE password: their check arrived, or they answered one of ours."""
        self._sockets: dict[StunProtocol, socket.socket] = {}
        """Those the system filters for us."""
        self._dropped: dict[int, int] = {}
        """By the number of the socket's file; those of one connection are open together."""
        self._connected = False
        self._stirred = asyncio.Event()
        """There may be something to check, or nothing more to come."""
        self._selected_heard_at_ns = 0
        self.moves = 0
        """Times that the peer went on from another address."""
        self._end_signalled = False
        self._resolving: set[asyncio.Task[Any] | None] = set()
        self._mdns_opening: asyncio.Task[mdns.MDnsProtocol] | None = None

    # Candidates.

    async def add_remote_candidate(self, remote_candidate: Candidate | None) -> None:
        """As the base class, but an mDNS name is resolved beside, not before, the answer."""
        if remote_candidate is None:
            self._end_signalled = True
            await self._end_when_resolved()
        elif not 0 < remote_candidate.port < 65536:
            # Sending there would close our own socket.
            self.rejections.count("candidates")
        elif len(self._remote_candidates) + len(self._resolving) >= MAX_REMOTE_CANDIDATES:
            self.rejections.count("candidates")
        elif mdns.is_mdns_hostname(remote_candidate.host):
            self._resolving.add(asyncio.create_task(self._resolve(remote_candidate)))
        else:
            await super().add_remote_candidate(remote_candidate)
        self._stirred.set()

    async def _resolve(self, remote_candidate: Candidate) -> None:
        if self._mdns_opening is None:
            self._mdns_opening = asyncio.create_task(get_or_create_mdns_protocol(self))
        try:
            # A socket that is cancelled while it opens would leak.
            await asyncio.shield(self._mdns_opening)
            await super().add_remote_candidate(remote_candidate)
        except OSError as error:
            logger.info("%r: no mDNS here: %s", self, error)
        finally:
            self._resolving.discard(asyncio.current_task())
        await self._end_when_resolved()
        self._stirred.set()

    async def _end_when_resolved(self) -> None:
        """Signal the end of candidates, unless the peer's own checks must tell its address.

        With the end signalled, an empty check list would fail at once.
        """
        if self._end_signalled and not self._resolving and self._remote_candidates:
            await super().add_remote_candidate(None)

    async def gather_candidates(self) -> None:
        """As the base class, but that addresses are not listed anew for each call; without a file
        to open the interfaces or a socket, 503."""
        if self._local_candidates_start:
            return
        self._local_candidates_start = True
        try:
            addresses = RECENT.get() if self._transport_policy == TransportPolicy.ALL else []
            for component in self._components:
                found = await self.get_component_candidates(component, addresses)
                self._local_candidates += found
        except OSError as error:
            if error.errno in OUT_OF_FILES:
                raise UnavailableError("no file is left for a socket", PORT_RETRY_AFTER_S) from None
            raise
        self._local_candidates_end = True

    async def get_component_candidates(
        self, component: int, addresses: list[str], timeout: int = 5
    ) -> list[Candidate]:
        """Open sockets within the port range and ask STUN and TURN, all in bounded time."""
        addresses = list(addresses)
        if (
            self._transport_policy == TransportPolicy.ALL
            and (not addresses or self._options.loopback_candidates)
            and LOOPBACK not in addresses
        ):
            addresses.append(LOOPBACK)
        candidates: list[Candidate] = []
        host_protocols: list[StunProtocol] = []
        exhausted = False
        for address in addresses:
            try:
                protocol = await self._open_socket(address)
            except OSError as error:
                if error.errno in OUT_OF_FILES:
                    raise
                exhausted |= error.errno == errno.EADDRINUSE
                logger.info("%r: could not bind to %s: %s", self, address, error)
                continue
            host, port = protocol.transport.get_extra_info("sockname")[:2]
            protocol.local_candidate = _host_candidate(component, host, port)
            host_protocols.append(protocol)
            self._protocols.append(protocol)
            candidates.append(protocol.local_candidate)
        if exhausted and not candidates and self._options.port_range is not None:
            first, last = self._options.port_range
            raise UnavailableError(
                f"port_range: all {last - first + 1} UDP ports of {first}-{last} are in use",
                PORT_RETRY_AFTER_S,
            )
        candidates += self._announced(component, candidates)
        return candidates + await self._ask_servers(component, host_protocols)

    def _announced(self, component: int, candidates: list[Candidate]) -> list[Candidate]:
        """The outside addresses that lead to our IPv4 or IPv6 sockets, port for port."""
        return [
            _host_candidate(component, address, candidate.port)
            for address in self._options.announced
            for candidate in candidates
            if ipaddress.ip_address(candidate.host).version == ipaddress.ip_address(address).version
        ]

    async def _open_socket(self, address: str) -> StunProtocol:
        ports = [0]
        if self._options.port_range is not None:
            first, last = self._options.port_range
            count = last - first + 1
            start = random.randrange(count)
            ports = [first + (start + step) % count for step in range(count)]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for port in ports:
            # Bound here, not by the loop: uvloop's error does not tell which one it is.
            opened = socket.socket(family, socket.SOCK_DGRAM)
            try:
                opened.setblocking(False)
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
                opened.bind((address, port))
            except OSError as error:
                opened.close()
                if error.errno != errno.EADDRINUSE or port == ports[-1]:
                    raise
                continue
            filtered = self._filters and socket_filter.attach(opened, None)
            _, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
                self._make_protocol, sock=opened
            )
            if filtered:
                self._sockets[protocol] = opened
            return protocol
        raise AssertionError("there is always at least one port")

    @property
    def _filters(self) -> bool:
        return self._options.datagram_guard and self._options.socket_filter

    def _make_protocol(self) -> StunProtocol:
        return GuardedStunProtocol(self) if self._options.datagram_guard else StunProtocol(self)

    async def _ask_servers(
        self, component: int, host_protocols: list[StunProtocol]
    ) -> list[Candidate]:
        """Candidates from STUN and TURN that came in time."""
        tasks: list[asyncio.Task[tuple[Candidate, StunProtocol | None]]] = []
        if self.stun_server:
            tasks += [
                asyncio.create_task(server_reflexive_candidate(protocol, self.stun_server))
                for protocol in host_protocols
                if ipaddress.ip_address(protocol.local_candidate.host).version == 4
            ]
        if self.turn_server:
            tasks.append(
                asyncio.create_task(
                    relayed_candidate(
                        component=component,
                        hide_related_address=self._transport_policy == TransportPolicy.RELAY,
                        protocol_factory=self._make_protocol,
                        turn_server=self.turn_server,
                        turn_username=self.turn_username,
                        turn_password=self.turn_password,
                        turn_ssl=self.turn_ssl,
                        turn_transport=self.turn_transport,
                    )
                )
            )
        if not tasks:
            return []
        try:
            done, pending = await asyncio.wait(tasks, timeout=self._options.gather_timeout_s)
        finally:
            # Also when the offer is given up meanwhile: an allocation that nobody owns would keep
            # its socket and renew itself. What is done takes no harm.
            for task in tasks:
                task.cancel()
        if pending:
            logger.warning("%r: %d STUN or TURN answers did not come in time", self, len(pending))
        candidates: list[Candidate] = []
        for task in done:
            error = task.exception()
            if error is not None:
                logger.warning("%r: STUN or TURN failed: %s", self, error)
                continue
            candidate, protocol = task.result()
            candidates.append(candidate)
            if protocol is not None:
                self._protocols.append(protocol)
        return candidates

    async def connect(self) -> None:
        """As the base class, which looks for something to check each 20 ms for as long as more
        candidates may come; here whatever brings something to check tells of it.

        A thousand half-open calls cost the base class more than a core.
        """
        if not self._local_candidates_end:
            raise ConnectionError("candidates were not gathered")
        if self.remote_username is None or self.remote_password is None:
            raise ConnectionError("the peer's ICE credentials are missing")
        for candidate in self._remote_candidates:
            self._pair_remote_candidate(candidate)
        self.sort_check_list()
        self._unfreeze_initial()
        for early in self._early_checks:
            self.check_incoming(*early)
        self._early_checks.clear()
        self._early_checks_done = True
        while not self._check_list_done:
            self._stirred.clear()
            if self._start_check():
                await asyncio.sleep(CHECK_INTERVAL_S)
            elif self._remote_candidates_expected():
                await self._stirred.wait()
            else:
                break
        completed = bool(self._check_list) and await self._check_list_state.get() == ICE_COMPLETED
        for pair in self._check_list:
            if pair.task is not None:
                pair.task.cancel()
        if not completed:
            raise ConnectionError("no connectivity check succeeded")
        self._query_consent_task = asyncio.create_task(self.query_consent())
        self._connected = True
        for protocol in self._sockets:
            self._filter_sources(protocol)

    def _start_check(self) -> bool:
        """Start the best check that waits, else a frozen one; False when there is none."""
        for state in (CandidatePair.State.WAITING, CandidatePair.State.FROZEN):
            for pair in self._check_list:
                if pair.state == state:
                    self.check_start_task(pair)
                    return True
        return False

    def check_complete(self, pair: CandidatePair) -> None:
        """As the base class."""
        super().check_complete(pair)
        self._stirred.set()

    # Who may send.

    def check_incoming(
        self, message: stun.Message, addr: tuple[str, int], protocol: StunProtocol
    ) -> None:
        """An authenticated check arrived; its source may begin DTLS."""
        known = any(pair.remote_addr == addr for pair in self._check_list)
        if not known and len(self._check_list) >= MAX_PAIRS:
            self.rejections.count("candidates")
            return
        self.last_check_at_ns = now_ns()
        self._prove(protocol, addr)
        super().check_incoming(message, addr, protocol)
        self._stirred.set()

    def check_state(self, pair: CandidatePair, state: CandidatePair.State) -> None:
        """A pair that succeeded answered with the password."""
        super().check_state(pair, state)
        if state == CandidatePair.State.SUCCEEDED:
            self._prove(pair.protocol, pair.remote_addr)

    def _prove(self, protocol: StunProtocol, addr: _Address) -> None:
        if (protocol, addr) not in self._proven:
            self._proven.add((protocol, addr))
            # Until then a handshake that follows its check at once would meet the old filter.
            if self._connected:
                self._filter_sources(protocol)

    def _filter_sources(self, protocol: StunProtocol) -> None:
        opened = self._sockets.get(protocol)
        if opened is not None and opened.fileno() >= 0:
            proven = [addr for socket_of, addr in self._proven if socket_of is protocol]
            socket_filter.attach(opened, sorted(proven))

    def datagram_kind_refused(
        self, data: bytes, addr: _Address, protocol: StunProtocol
    ) -> str | None:
        """Why a datagram that is not STUN may not enter, or None when it may."""
        if not data:
            return "empty"
        first = data[0]
        is_dtls = 20 <= first <= 63
        if not is_dtls and not 128 <= first <= 191:
            return "unknown"
        if len(data) > (MAX_DTLS_BYTES if is_dtls else MAX_RTP_BYTES):
            return "oversize"
        # Each side may nominate another pair, so a proven source may send over any, also after
        # our own nomination.
        return None if (protocol, addr) in self._proven else "foreign"

    def dropped_by_system(self) -> int:
        """Datagrams that never came in: the filter's, or no room was left in a socket."""
        for opened in self._sockets.values():
            if opened.fileno() >= 0:
                self._dropped[opened.fileno()] = socket_filter.dropped(opened)
        return sum(self._dropped.values())

    def heard_from(self, addr: _Address, protocol: StunProtocol) -> None:
        """A datagram of the peer's own passed the filter; answer it where it is now.

        Only an address that answered one of our own checks is followed.
        """
        selected = self._nominated.get(protocol.local_candidate.component)
        if selected is None:
            return
        if selected.protocol is protocol and selected.remote_addr == addr:
            self._selected_heard_at_ns = now_ns()
            return
        if now_ns() - self._selected_heard_at_ns < MOVED_AFTER_NS:
            return
        for pair in self._check_list:
            if (
                pair.protocol is protocol
                and pair.remote_addr == addr
                and pair.state == CandidatePair.State.SUCCEEDED
            ):
                self._nominated[pair.component] = pair
                self._selected_heard_at_ns = now_ns()
                self.moves += 1
                logger.info("%r: the peer goes on from %s port %d", self, *addr)
                return

    # The queue.

    def data_received(self, data: bytes, component: int) -> None:
        """Queue a datagram for the pump."""
        if (
            self._options.datagram_guard
            and self._queue.qsize() >= self._options.datagram_queue_packets
        ):
            self.rejections.count("overflow")
            return
        self._last_arrival_at_ns = now_ns()
        self._arrivals_ns.append(self._last_arrival_at_ns)
        super().data_received(data, component)

    async def recvfrom(self) -> tuple[bytes, int]:
        """As the base class; `datagram_received_at_ns` belongs to what is returned."""
        result = await super().recvfrom()
        self.datagram_received_at_ns = self._arrivals_ns.popleft()
        return result

    # Consent.

    async def query_consent(self) -> None:
        """Ask the peer each second whether it is there; close after about 8 s of silence."""
        if not self._options.fast_consent:
            await super().query_consent()
            return
        assert self.remote_password is not None, "connect() comes after the remote password"
        key = self.remote_password.encode()
        failures = 0
        while True:
            for pair in list(self._nominated.values()):
                request = self.build_request(pair, nominate=False)
                asked_at_ns = now_ns()
                try:
                    await pair.protocol.request(
                        request,
                        pair.remote_addr,
                        integrity_key=key,
                        retransmissions=CONSENT_RETRANSMISSIONS,
                    )
                except stun.TransactionError:
                    # Media that arrives meanwhile is an answer too: checks may be lost.
                    failures = 0 if self._last_arrival_at_ns > asked_at_ns else failures + 1
                else:
                    failures = 0
                    self.last_check_at_ns = now_ns()
                    self._note_rtt(self.last_check_at_ns - asked_at_ns)
            if failures >= CONSENT_FAILURES:
                logger.info("%r: the peer no longer answers", self)
                self._query_consent_task = None
                await self.close()
                return
            await asyncio.sleep(self.consent_interval_s * random.uniform(0.8, 1.2))

    def _note_rtt(self, rtt_ns: int) -> None:
        before_ns = self.rtt_ns or rtt_ns
        self.rtt_ns = int(before_ns + RTT_SMOOTHING * (rtt_ns - before_ns))

    async def close(self) -> None:
        """As the base class; names still being resolved are forgotten."""
        resolving = [task for task in self._resolving if task is not None]
        for task in resolving:
            task.cancel()
        await asyncio.gather(*resolving, return_exceptions=True)
        self._resolving.clear()
        if self._mdns_opening is not None:
            await asyncio.gather(self._mdns_opening, return_exceptions=True)
        # Its first steps end the list of checks; `connect` then finds it done.
        asyncio.get_running_loop().call_soon(self._stirred.set)
        await super().close()
        # Each check that was cancelled leads to its pair, and each pair and each source to a
        # socket's protocol, which leads back here.
        for pair in self._check_list:
            pair.task = None
        self._check_list.clear()
        self._early_checks.clear()
        self._proven.clear()
        self._sockets.clear()

    @property
    def has_open_socket(self) -> bool:
        """Whether it still occupies a port."""
        return any(not protocol.transport.is_closing() for protocol in self._protocols)

    def cut(self) -> None:
        """Close the sockets without waiting, and wake whoever receives."""
        for protocol in self._protocols:
            protocol.transport.close()
        self._queue.put_nowait(None)


class GuardedStunProtocol(StunProtocol):
    """One socket. Whatever arrives is parsed here, refused here, and never raises."""

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        """STUN is answered by anyone's leave, everything else passes the source filter."""
        datagram = cast(bytes, data)
        address = (addr[0], addr[1])
        connection = cast(IceConnection, self.receiver)
        if not datagram or datagram[0] > 3:
            refused = connection.datagram_kind_refused(datagram, address, self)
            if refused is None:
                connection.heard_from(address, self)
                connection.data_received(datagram, self.local_candidate.component)
            else:
                connection.rejections.count(refused)
            return
        try:
            self._stun_received(stun.parse_message(datagram), address, connection)
        except (ValueError, struct.error, KeyError, IndexError, AssertionError):
            connection.rejections.count("stun")

    def _stun_received(
        self, message: stun.Message, address: _Address, connection: IceConnection
    ) -> None:
        if message.message_class in (stun.Class.RESPONSE, stun.Class.ERROR):
            transaction = self.transactions.get(message.transaction_id)
            if transaction is not None:
                transaction.response_received(message, address)
        elif message.message_class == stun.Class.REQUEST:
            connection.request_received(message, address, self)


def _host_candidate(component: int, host: str, port: int) -> Candidate:
    return Candidate(
        foundation=candidate_foundation("host", "udp", host),
        component=component,
        transport="udp",
        priority=candidate_priority(component, "host"),
        host=host,
        port=port,
        type="host",
    )


class IceGatherer(RTCIceGatherer):
    """aiortc's gatherer around an `IceConnection`."""

    def __init__(
        self,
        options: RtcOptions,
        local_username: str | None = None,
        local_password: str | None = None,
    ) -> None:
        servers = [
            RTCIceServer(
                urls=list(server.urls), username=server.username, credential=server.credential
            )
            for server in options.ice_servers
        ]
        super().__init__(
            iceServers=servers, local_username=local_username, local_password=local_password
        )
        made = self._connection
        self._connection = self.connection = IceConnection(
            options=options,
            stun_server=made.stun_server,
            turn_server=made.turn_server,
            turn_username=made.turn_username,
            turn_password=made.turn_password,
            turn_ssl=made.turn_ssl,
            turn_transport=made.turn_transport,
            local_username=made.local_username,
            local_password=made.local_password,
        )
