"""A bad network between two real peers on this machine: a UDP relay on a thread of its own.

It stands in the offer in the caller's place and in the answer in the server's, so both send to
it without knowing. No root, no kernel module; what it does is in `bench/impairment.py`.
"""

import re
import selectors
import socket
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from bench.errors import BenchError
from bench.impairment import CLEAR, Impairment, Link
from server.clock import NS_PER_S, now_ns

BUFFER_BYTES: Final = 4 << 20
DATAGRAM_BYTES: Final = 65_536
JOIN_TIMEOUT_S: Final = 5.0
# A candidate of a peer's own: component 1, UDP, an IPv4 address, type host.
HOST_CANDIDATE: Final = re.compile(
    r"^a=candidate:\S+ 1 udp \d+ (\d+\.\d+\.\d+\.\d+) (\d+) typ host", re.MULTILINE | re.IGNORECASE
)
CANDIDATE_LINE: Final = re.compile(r"^a=(candidate:|end-of-candidates).*\r?\n", re.MULTILINE)

Address = tuple[str, int]


class RelayError(BenchError):
    """A description has no address that a relay could stand in for."""


class Relay:
    """One call's two directions. A context manager: within it the thread runs.

    `up` is from the caller, who offers, to the server; `down` the way back. Their impairments
    may be changed while packets flow. What either side sends before its address is known is
    lost, as on a real path before a binding exists.
    """

    def __init__(self, up: Impairment = CLEAR, down: Impairment = CLEAR, seed: int = 0) -> None:
        self.up = Link(up, f"{seed}/up")
        self.down = Link(down, f"{seed}/down")
        self._caller: Address | None = None
        self._server: Address | None = None
        # Each faces one of the two, and takes what that one sends.
        self._caller_side: socket.socket | None = None
        self._server_side: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        # Guards sockets and selector, which `offer`, `answer`, `rebind` and the thread share.
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping = True
        self._wake.send(b"x")
        self._thread.join(JOIN_TIMEOUT_S)
        for side in (self._caller_side, self._server_side, self._wake, self._woken):
            if side is not None:
                side.close()
        self._selector.close()

    def offer(self, sdp: str) -> str:
        """The caller's offer as the server shall see it."""
        self._caller = _address_in(sdp)
        self._server_side = self._open(self._caller[0])
        return _standing_in(sdp, self._server_side.getsockname())

    def answer(self, sdp: str) -> str:
        """The server's answer as the caller shall see it."""
        self._server = _address_in(sdp)
        self._caller_side = self._open(self._server[0])
        return _standing_in(sdp, self._caller_side.getsockname())

    def impair(self, up: Impairment | None = None, down: Impairment | None = None) -> None:
        """From now on; what is under way stays as it is."""
        self.up.impairment = up or self.up.impairment
        self.down.impairment = down or self.down.impairment

    def rebind(self) -> None:
        """The caller appears at another address, as behind a NAT that forgot it."""
        before = self._server_side
        assert before is not None, "after the offer"
        self._server_side = self._open(before.getsockname()[0])
        with self._lock:
            self._selector.unregister(before)
            before.close()

    def vanish(self) -> None:
        """The caller's machine is there, but nothing listens on its port any more."""
        with self._lock:
            for side in (self._caller_side, self._server_side):
                if side is not None:
                    self._selector.unregister(side)
                    side.close()
            self._caller_side = self._server_side = None

    def _open(self, host: str) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        opened.setblocking(False)
        opened.bind((host, 0))
        with self._lock:
            self._selector.register(opened, selectors.EVENT_READ)
        self._wake.send(b"x")
        return opened

    # On the relay's thread.

    def _run(self) -> None:
        while not self._stopping:
            instants = [self.up.next_due_ns, self.down.next_due_ns]
            due_ns = min((instant for instant in instants if instant is not None), default=None)
            timeout_s = None if due_ns is None else max(0.0, (due_ns - now_ns()) / NS_PER_S)
            self._selector.select(timeout_s)
            with self._lock:
                _drain(self._woken)
                at_ns = now_ns()
                for datagram, address in _drain(self._caller_side):
                    self._caller = address
                    self.up.put(datagram, at_ns)
                for datagram, _ in _drain(self._server_side):
                    self.down.put(datagram, at_ns)
                _send(self._server_side, self._server, self.up.due(now_ns()))
                _send(self._caller_side, self._caller, self.down.due(now_ns()))


def _drain(side: socket.socket | None) -> Iterable[tuple[bytes, Address]]:
    while side is not None:
        try:
            yield side.recvfrom(DATAGRAM_BYTES)
        except (BlockingIOError, ConnectionError):
            return


def _send(side: socket.socket | None, address: Address | None, datagrams: list[bytes]) -> None:
    if side is None or address is None:
        return
    for datagram in datagrams:
        try:
            side.sendto(datagram, address)
        except OSError:
            # A full buffer, or nobody there any more: lost, as on a real path.
            continue


def _address_in(sdp: str) -> Address:
    found = HOST_CANDIDATE.search(sdp)
    if found is None:
        raise RelayError("relay: the description holds no IPv4 host candidate to stand in for")
    return found[1], int(found[2])


def _standing_in(sdp: str, address: Address) -> str:
    """The description with our address as its only candidate."""
    ours = (
        f"a=candidate:1 1 udp 2130706431 {address[0]} {address[1]} typ host\r\n"
        "a=end-of-candidates\r\n"
    )
    head, *sections = re.split(r"^(?=m=)", CANDIDATE_LINE.sub("", sdp), flags=re.MULTILINE)
    return head + "".join(section + ours for section in sections)
