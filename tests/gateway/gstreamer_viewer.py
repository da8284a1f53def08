"""A WHEP viewer of another make: GStreamer's webrtcbin under the system's Python.

Run as `/usr/bin/python3 gstreamer_viewer.py URL COUNT`; needs Debian's python3-gi,
gir1.2-gst-plugins-bad-1.0 and gstreamer1.0-{plugins-bad,nice,libav}, and nothing of ours. Prints
one line of JSON when COUNT pictures were decoded, and ends with 0; with 1 when they do not come.
"""

import importlib
import json
import sys
import urllib.error
import urllib.request
from typing import Any

# By name: they belong to the system's Python, not to the environment that checks this file.
gi: Any = importlib.import_module("gi")
for name in ("Gst", "GstSdp", "GstWebRTC"):
    gi.require_version(name, "1.0")
GLib: Any = importlib.import_module("gi.repository.GLib")
Gst: Any = importlib.import_module("gi.repository.Gst")
GstSdp: Any = importlib.import_module("gi.repository.GstSdp")
GstWebRTC: Any = importlib.import_module("gi.repository.GstWebRTC")

PATIENCE_S = 25
CAPS = (
    "application/x-rtp,media=video,encoding-name=H264,clock-rate=90000,payload=96,"
    "packetization-mode=(string)1,profile-level-id=(string)42e01f,"
    "rtcp-fb-nack=(boolean)true,rtcp-fb-nack-pli=(boolean)true"
)
SHOW = "rtph264depay ! avdec_h264 ! fakesink name=eye signal-handoffs=true sync=false"


class Viewer:
    """One pipeline from offer to the last picture."""

    def __init__(self, url: str, wanted: int) -> None:
        self._url = url
        self._wanted = wanted
        self._loop = GLib.MainLoop()
        self._posted = False
        # The bindings free what nobody refers to, though the pipeline still reads it.
        self._kept: list[Any] = []
        self.seen = 0
        self.size = (0, 0)
        self._pipeline = Gst.Pipeline.new("viewer")
        self._rtc = Gst.ElementFactory.make("webrtcbin", "rtc")
        self._rtc.set_property("bundle-policy", "max-bundle")
        self._pipeline.add(self._rtc)
        recvonly = GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY
        self._rtc.emit("add-transceiver", recvonly, Gst.Caps.from_string(CAPS))
        self._rtc.connect("on-negotiation-needed", self._offer)
        self._rtc.connect("notify::ice-gathering-state", self._gathered)
        self._rtc.connect("pad-added", self._show)

    def run(self) -> bool:
        self._pipeline.set_state(Gst.State.PLAYING)
        GLib.timeout_add_seconds(PATIENCE_S, self._loop.quit)
        self._loop.run()
        self._pipeline.set_state(Gst.State.NULL)
        return self.seen >= self._wanted

    def _offer(self, rtc: Any) -> None:
        rtc.emit("create-offer", None, Gst.Promise.new_with_change_func(self._offered))

    def _offered(self, promise: Any, *_: Any) -> None:
        promise.wait()
        reply = promise.get_reply()
        offer = reply.get_value("offer")
        self._kept += [promise, reply, offer]
        self._rtc.emit("set-local-description", offer, Gst.Promise.new())

    def _gathered(self, *_: Any) -> None:
        complete = GstWebRTC.WebRTCICEGatheringState.COMPLETE
        if self._rtc.get_property("ice-gathering-state") == complete and not self._posted:
            self._posted = True
            GLib.idle_add(self._post)

    def _post(self) -> None:
        sdp = self._rtc.get_property("local-description").sdp.as_text()
        request = urllib.request.Request(
            self._url, sdp.encode(), {"Content-Type": "application/sdp"}, method="POST"
        )
        try:
            with urllib.request.urlopen(request) as reply:
                text = reply.read().decode()
        except urllib.error.HTTPError as error:
            print(f"refused with {error.code}: {error.read().decode()}", file=sys.stderr)
            self._loop.quit()
            return
        _, message = GstSdp.SDPMessage.new_from_text(text)
        kind = GstWebRTC.WebRTCSDPType.ANSWER
        answer = GstWebRTC.WebRTCSessionDescription.new(kind, message)
        self._kept += [message, answer]
        self._rtc.emit("set-remote-description", answer, Gst.Promise.new())

    def _show(self, _: Any, pad: Any) -> None:
        if pad.get_direction() != Gst.PadDirection.SRC:
            return
        shown = Gst.parse_bin_from_description(SHOW, True)
        shown.get_by_name("eye").connect("handoff", self._see)
        self._pipeline.add(shown)
        shown.sync_state_with_parent()
        pad.link(shown.get_static_pad("sink"))

    def _see(self, _: Any, __: Any, pad: Any) -> None:
        self.seen += 1
        if self.seen == self._wanted:
            structure = pad.get_current_caps().get_structure(0)
            self.size = (structure.get_value("width"), structure.get_value("height"))
            GLib.idle_add(self._loop.quit)


def main() -> int:
    Gst.init(None)
    viewer = Viewer(sys.argv[1], int(sys.argv[2]))
    complete = viewer.run()
    print(json.dumps({"pictures": viewer.seen, "size": viewer.size}), flush=True)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
