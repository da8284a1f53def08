"""Offers as publishers and viewers write them; addresses and keys are made up."""

TRANSPORT = """\
a=ice-ufrag:8e43cbdc
a=ice-pwd:d69b2fe0ba5f548e71ea12907d21a14b
a=fingerprint:sha-256 \
2C:F2:B4:5E:F2:8E:1B:B3:DF:5A:A8:FC:86:01:0F:7D:2B:21:6E:38:44:83:C4:66:BC:72:F2:7B:5D:85:8A:3D
"""

# FFmpeg 8.1's whip muxer: no candidates, passive in DTLS, one format.
FFMPEG = f"""\
v=0
o=FFmpeg 4489045141692799359 2 IN IP4 127.0.0.1
s=FFmpegPublishSession
t=0 0
a=group:BUNDLE 1
a=extmap-allow-mixed
a=msid-semantic: WMS
m=video 9 UDP/TLS/RTP/SAVPF 106 105
c=IN IP4 0.0.0.0
{TRANSPORT}a=setup:passive
a=mid:1
a=sendonly
a=msid:FFmpeg video
a=rtcp-mux
a=rtcp-rsize
a=rtpmap:106 H264/90000
a=fmtp:106 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42000d
a=rtcp-fb:106 nack
a=rtpmap:105 rtx/90000
a=fmtp:105 apt=106
a=ssrc-group:FID 3519602649 3519602650
a=ssrc:3519602649 cname:FFmpeg
a=ssrc:3519602649 msid:FFmpeg video
"""

# OBS Studio 30 and later (libdatachannel): sound first, transport at the session level.
OBS = f"""\
v=0
o=rtc 3767197920 0 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
a=group:LS 0 1
a=msid-semantic:WMS *
a=ice-options:ice2,trickle
a=setup:actpass
{TRANSPORT}m=audio 9 UDP/TLS/RTP/SAVPF 111
c=IN IP4 0.0.0.0
a=mid:0
a=sendonly
a=ssrc:1801513206 cname:tLBOPbCNmWwoXeqs
a=ssrc:1801513206 msid:bWRxPzVTcJyoVHQd bWRxPzVTcJyoVHQd-audio
a=msid:bWRxPzVTcJyoVHQd bWRxPzVTcJyoVHQd-audio
a=rtcp-mux
a=rtpmap:111 opus/48000/2
a=fmtp:111 minptime=10;maxaveragebitrate=96000;stereo=1;sprop-stereo=1;useinbandfec=1
m=video 9 UDP/TLS/RTP/SAVPF 96
c=IN IP4 0.0.0.0
a=mid:1
a=sendonly
a=ssrc:1801513207 cname:tLBOPbCNmWwoXeqs
a=ssrc:1801513207 msid:bWRxPzVTcJyoVHQd bWRxPzVTcJyoVHQd-video
a=msid:bWRxPzVTcJyoVHQd bWRxPzVTcJyoVHQd-video
a=rtcp-mux
a=rtpmap:96 H264/90000
a=rtcp-fb:96 nack
a=rtcp-fb:96 nack pli
a=rtcp-fb:96 goog-remb
a=fmtp:96 profile-level-id=42e01f;packetization-mode=1;level-asymmetry-allowed=1
"""

# Chromium with three layers (simulcast, RFC 8853): no a=ssrc, the layers are told apart by rid.
SIMULCAST = f"""\
v=0
o=- 5187612095126532158 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
a=extmap-allow-mixed
a=msid-semantic: WMS 5a8c
m=video 9 UDP/TLS/RTP/SAVPF 96 97
c=IN IP4 0.0.0.0
a=rtcp:9 IN IP4 0.0.0.0
{TRANSPORT}a=ice-options:trickle
a=setup:actpass
a=mid:0
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid
a=extmap:10 urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id
a=extmap:11 urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id
a=sendonly
a=msid:5a8c 1f0e
a=rtcp-mux
a=rtcp-rsize
a=rtpmap:96 VP8/90000
a=rtcp-fb:96 goog-remb
a=rtcp-fb:96 nack
a=rtcp-fb:96 nack pli
a=rtpmap:97 rtx/90000
a=fmtp:97 apt=96
a=rid:h send
a=rid:m send
a=rid:l send
a=simulcast:send h;m;l
"""

VIEWER = f"""\
v=0
o=- 3961232 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
m=video 9 UDP/TLS/RTP/SAVPF 96 97
c=IN IP4 0.0.0.0
{TRANSPORT}a=setup:actpass
a=mid:0
a=recvonly
a=rtcp-mux
a=extmap:5 http://www.webrtc.org/experiments/rtp-hdrext/playout-delay
a=extmap:9 http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time
a=rtpmap:96 VP8/90000
a=rtcp-fb:96 nack pli
a=rtcp-fb:96 goog-remb
a=rtpmap:97 H264/90000
a=fmtp:97 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f
"""
