"""A DTLS transport whose pump survives every datagram.

In aiortc whatever a parser raises ends the pump, and with it the session. Here it costs the
datagram and is counted by kind in the connection's rejections.
"""

import asyncio
import logging

from aiortc import RTCCertificate, RTCDtlsTransport, RTCIceTransport
from aiortc.rtcdtlstransport import RtpReceiver, RtpRouter, SRTPProtectionProfile, State
from aiortc.rtp import RtpPacket
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from server.clock import now_ns
from server.rtc.rejections import Rejections

logger = logging.getLogger(__name__)

MAX_SOURCES = 32
# What OpenSSL 4 takes in a certificate; older curves were left out of it (RFC 8422).
CURVES = ("secp256r1", "secp384r1", "secp521r1")


# Our own key is of a curve; a peer's may be RSA, as GStreamer's and older browsers' are. aiortc as
# the client offers suites for the former alone.
CIPHERS = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-CHACHA20-POLY1305:"
    b"ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-CHACHA20-POLY1305:"
    b"ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA"
)


class WiderCertificate(RTCCertificate):
    """One whose handshakes take peers with RSA keys too."""

    def _create_ssl_context(self, srtp_profiles: list[SRTPProtectionProfile]) -> SSL.Context:
        context = super()._create_ssl_context(srtp_profiles)
        context.set_cipher_list(CIPHERS)
        return context


class BoundedRtpRouter(RtpRouter):
    """Learns at most `MAX_SOURCES` sources, and tells two cameras in one bundle apart."""

    def route_rtp(self, packet: RtpPacket) -> RtpReceiver | None:
        """The receiver for a packet; an unknown source goes by its MID, then by its format."""
        if packet.ssrc not in self.ssrc_table:
            if len(self.ssrc_table) >= MAX_SOURCES:
                return None
            named = self.mid_table.get(packet.extensions.mid)
            if named is not None and named in self.payload_type_table.get(
                packet.payload_type, set()
            ):
                self.ssrc_table[packet.ssrc] = named
        return super().route_rtp(packet)


class GuardedDtlsTransport(RTCDtlsTransport):
    """One peer's DTLS and SRTP. Loop only."""

    def __init__(
        self,
        transport: RTCIceTransport,
        certificates: list[RTCCertificate],
        rejections: Rejections,
    ) -> None:
        super().__init__(transport, [WiderCertificate(c._key, c._cert) for c in certificates])
        self._rtp_router = BoundedRtpRouter()
        self._rejections = rejections
        self.last_packet_at_ns = 0
        """Last packet that was authenticated with this session's keys."""
        self.failure = ""
        """Why the handshake failed, where it is known; empty otherwise."""
        self.says_goodbye = True
        """Whether the peer is told the end (close_notify)."""

    def _set_state(self, state: State) -> None:
        # Before whoever listens hears of it.
        if state == State.FAILED and self._ssl is not None:
            self._look_at_certificate(self._ssl)
        super()._set_state(state)

    def _look_at_certificate(self, connection: SSL.Connection) -> None:
        certificate = connection.get_peer_certificate(as_cryptography=True)
        key = certificate.public_key() if certificate is not None else None
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name not in CURVES:
            # FFmpeg up to 8.1 built with GnuTLS makes its own certificates of secp224r1.
            self.failure = "certificate curve not served"
            logger.warning(
                "DTLS failed: the peer's certificate is of curve %s, not one of %s; FFmpeg takes "
                "a P-256 pair with -cert_file and -key_file",
                key.curve.name,
                ", ".join(CURVES),
            )

    async def stop(self) -> None:
        """As the base class; no certificate is looked at from then on. Idempotent."""
        if not self.says_goodbye:
            self._set_state(State.CLOSED)
        await super().stop()
        connection = self._ssl
        if connection is not None and (helper := connection._verify_helper) is not None:
            # pyOpenSSL's helper and its callback keep each other.
            connection.set_verify(SSL.VERIFY_NONE)
            helper.callback = None

    async def _recv_next(self) -> None:
        try:
            await super()._recv_next()
        except (ConnectionError, asyncio.CancelledError):
            raise
        except SSL.Error as error:
            # OpenSSL gave up, for instance after too many handshake timeouts.
            self._rejections.count("dtls", error)
            if not self.encrypted:
                raise ConnectionError("DTLS handshake failed") from error
        except Exception as error:
            # The top of the session's run loop; what is below parses what a peer sent.
            self._rejections.count("data", error)

    async def _handle_rtp_data(self, data: bytes, arrival_time_ms: int) -> None:
        self.last_packet_at_ns = now_ns()
        try:
            await super()._handle_rtp_data(data, arrival_time_ms)
        except ConnectionError:
            raise
        except Exception as error:
            # What a peer sent costs itself: it is counted, and the next is read.
            self._rejections.count("rtp", error)

    async def _handle_rtcp_data(self, data: bytes) -> None:
        self.last_packet_at_ns = now_ns()
        try:
            await super()._handle_rtcp_data(data)
        except ConnectionError:
            raise
        except Exception as error:
            # What a peer sent costs itself: it is counted, and the next is read.
            self._rejections.count("rtcp", error)
