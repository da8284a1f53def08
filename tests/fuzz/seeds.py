"""Good inputs to begin with: what browsers, FFmpeg, OBS and GStreamer send, and our own files."""

import struct

from tests.doors.files import jpeg, png
from tests.gateway.offers import FFMPEG, OBS, VIEWER

ICE = """\
a=ice-ufrag:8e43cbdc
a=ice-pwd:d69b2fe0ba5f548e71ea12907d21a14b
a=fingerprint:sha-256 \
2C:F2:B4:5E:F2:8E:1B:B3:DF:5A:A8:FC:86:01:0F:7D:2B:21:6E:38:44:83:C4:66:BC:72:F2:7B:5D:85:8A:3D
"""

# Chromium's order: sound, video with simulcast's leftovers of extensions, a data channel.
CHROMIUM = f"""\
v=0
o=- 4611731400430051336 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
a=extmap-allow-mixed
a=msid-semantic: WMS 7a6e
m=video 9 UDP/TLS/RTP/SAVPF 96 97 102 103
c=IN IP4 0.0.0.0
a=rtcp:9 IN IP4 0.0.0.0
a=candidate:1853887674 1 udp 2113937151 192.0.2.7 54400 typ host generation 0 network-cost 999
{ICE}a=ice-options:trickle
a=setup:actpass
a=mid:0
a=extmap:1 urn:ietf:params:rtp-hdrext:toffset
a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time
a=extmap:3 urn:3gpp:video-orientation
a=extmap:4 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01
a=extmap:5 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay
a=extmap:9 urn:ietf:params:rtp-hdrext:sdes:mid
a=sendrecv
a=msid:7a6e 1f0b
a=rtcp-mux
a=rtcp-rsize
a=rtpmap:96 VP8/90000
a=rtcp-fb:96 goog-remb
a=rtcp-fb:96 transport-cc
a=rtcp-fb:96 ccm fir
a=rtcp-fb:96 nack
a=rtcp-fb:96 nack pli
a=rtpmap:97 rtx/90000
a=fmtp:97 apt=96
a=rtpmap:102 H264/90000
a=rtcp-fb:102 nack
a=rtcp-fb:102 nack pli
a=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f
a=rtpmap:103 rtx/90000
a=fmtp:103 apt=102
a=ssrc-group:FID 2231627014 632943048
a=ssrc:2231627014 cname:sound
a=ssrc:2231627014 msid:7a6e 1f0b
a=ssrc:632943048 cname:sound
a=ssrc:632943048 msid:7a6e 1f0b
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
{ICE}a=ice-options:trickle
a=setup:actpass
a=mid:1
a=sctp-port:5000
a=max-message-size:262144
"""

# Firefox: the fingerprint and the options at the session, addresses spelt out.
FIREFOX = f"""\
v=0
o=mozilla...THIS_IS_SDPARTA-99.0 4297098419326846420 0 IN IP4 0.0.0.0
s=-
t=0 0
a=fingerprint:sha-256 \
2C:F2:B4:5E:F2:8E:1B:B3:DF:5A:A8:FC:86:01:0F:7D:2B:21:6E:38:44:83:C4:66:BC:72:F2:7B:5D:85:8A:3D
a=group:BUNDLE 0
a=ice-options:trickle
a=msid-semantic:WMS *
m=video 40012 UDP/TLS/RTP/SAVPF 120 124 126 127
c=IN IP4 192.0.2.9
a=candidate:0 1 UDP 2122252543 192.0.2.9 40012 typ host
a=candidate:1 1 TCP 2105524479 192.0.2.9 9 typ host tcptype active
a=sendrecv
a=end-of-candidates
a=extmap:3 urn:ietf:params:rtp-hdrext:sdes:mid
a=extmap:4 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time
a=fmtp:126 profile-level-id=42e01f;level-asymmetry-allowed=1;packetization-mode=1
a=fmtp:120 max-fs=12288;max-fr=60
a=fmtp:124 apt=120
a=fmtp:127 apt=126
{ICE.split("a=fingerprint", maxsplit=1)[0]}a=mid:0
a=msid:{{0a1b}} {{2c3d}}
a=rtcp:36173 IN IP4 192.0.2.9
a=rtcp-fb:120 nack
a=rtcp-fb:120 nack pli
a=rtcp-fb:120 goog-remb
a=rtcp-fb:126 nack
a=rtcp-fb:126 nack pli
a=rtcp-mux
a=rtpmap:120 VP8/90000
a=rtpmap:124 rtx/90000
a=rtpmap:126 H264/90000
a=rtpmap:127 rtx/90000
a=setup:actpass
a=ssrc:3055364331 cname:{{4e5f}}
"""

# GStreamer's webrtcbin: no sources named, one codec, everything at the section.
GSTREAMER = f"""\
v=0
o=- 2840893023459871 0 IN IP4 0.0.0.0
s=-
t=0 0
a=ice-options:trickle
a=group:BUNDLE video0
m=video 9 UDP/TLS/RTP/SAVPF 96
c=IN IP4 0.0.0.0
a=setup:actpass
{ICE}a=rtcp-mux
a=rtcp-rsize
a=sendrecv
a=rtpmap:96 H264/90000
a=rtcp-fb:96 nack pli
a=framerate:30
a=fmtp:96 packetization-mode=1;profile-level-id=42c016
a=mid:video0
"""

OFFERS = {
    name: text.replace("\n", "\r\n")
    for name, text in {
        "Chromium": CHROMIUM,
        "Firefox": FIREFOX,
        "GStreamer": GSTREAMER,
        "FFmpeg": FFMPEG,
        "OBS": OBS,
        "viewer": VIEWER,
    }.items()
}

CHECK = struct.pack("!HHI12s", 1, 0, 0x2112A442, b"transaction!")

SEEDS: dict[str, tuple[bytes, ...]] = {
    "sdp": tuple(text.encode() for text in OFFERS.values()),
    "offer_body": (b'{"sdp":"v=0","type":"offer","options":{"mode":"smooth","confidence":0.5}}',),
    "fragment": (
        b"a=ice-ufrag:8e43\r\na=ice-pwd:d69b2fe0ba5f548e71ea1290\r\nm=video 9 X 0\r\na=mid:0\r\n"
        b"a=candidate:1 1 udp 2113937151 192.0.2.7 54400 typ host\r\na=end-of-candidates\r\n",
    ),
    "payload": (
        b"\x10\x00\x9d\x01\x2a", b"\x90\x80\x81\x23\x00", b"\x7c\x85\x88", b"\x78\x00\x02gB",
    ),
    "packets": (bytes(range(250)), bytes([1, 0, 1, 6, 5, 2, 0, 1, 6, 5, 3, 0, 2, 7, 5])),
    "stun": (CHECK, CHECK[:8] + b"x" * 40),
    "rtcp": (
        # a receiver's report, NACK, PLI, REMB, goodbye
        bytes.fromhex("81c9000700000001" + "00000002" + "10" + "000005" + "00000064" + "00" * 12),
        bytes.fromhex("81cd0003" + "00000001" + "00000002" + "0064ffff"),
        bytes.fromhex("81ce0002" + "00000001" + "00000002"),
        bytes.fromhex("8fce0005" + "00000001" + "00000000" + "52454d42" + "0107a120" + "00000002"),
        bytes.fromhex("81cb0001" + "00000001"),
    ),
    "picture": (jpeg(32, 24), png(32, 24)),
    "data_channel": (b'{"type":"ping","t":12.5}',),
    "configuration": (b"port: 9000\nvideo_codecs: [VP8]\n", b"api_keys:\n  - view:front-*:x\n"),
    "model_metadata": (
        b"{0: 'person', 1: 'cat'}", b"['a', 'b']", b"{'scale': 0.5, 'mean': [1]}", b"{[]}",
    ),
    "model_bytes": (b"\x08\x08\x12\x07pytorch",),
}  # fmt: skip
