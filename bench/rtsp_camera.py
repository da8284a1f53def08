"""An RTSP camera in a process of its own: GStreamer's server under the system's Python.

Run as `/usr/bin/python3 rtsp_camera.py [key=value ...]` by the bench and the tests; needs Debian's
python3-gi, gir1.2-gst-rtsp-server-1.0 and gstreamer1.0-plugins-{base,good,ugly}, and nothing of
ours. It prints one line of JSON with its port, and ends when its standard input ends.

Keys: `size` 640x360, `fps` 10, `codec` h264 (or mjpeg), `port` 0 (any), `gop`, `user` and
`password` (then it wants digest sign-in), `fifo`: raw I420 pictures are read from there in place of
a test pattern, `silent_after`: so many pictures, then none, while the connection stays.
"""

import importlib
import json
import sys
import threading
from typing import Any

# By name: they belong to the system's Python, not to the environment that checks this file.
gi: Any = importlib.import_module("gi")
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
GLib: Any = importlib.import_module("gi.repository.GLib")
Gst: Any = importlib.import_module("gi.repository.Gst")
GstRtspServer: Any = importlib.import_module("gi.repository.GstRtspServer")

OPTIONS = {
    "codec": "h264",
    "size": "640x360",
    "fps": "10",
    "port": "0",
    "bframes": "0",
    "gop": "10",
}


def pipeline(options: dict[str, str]) -> str:
    """What each client is served: a pattern with a moving ball, as H264."""
    width, height = options["size"].split("x")
    fps = options["fps"]
    caps = f"video/x-raw,format=I420,width={width},height={height},framerate={fps}/1"
    if "fifo" in options:
        source = f"appsrc name=camera is-live=true format=time do-timestamp=true caps={caps}"
    else:
        count = options.get("silent_after")
        buffers = f"num-buffers={count} " if count else ""
        source = f"videotestsrc is-live=true pattern=ball {buffers}! {caps}"
    if options["codec"] == "mjpeg":
        return f"( {source} ! jpegenc ! rtpjpegpay name=pay0 pt=26 )"
    return (
        f"( {source} ! x264enc tune=zerolatency speed-preset=ultrafast bitrate=1500 "
        f"key-int-max={options['gop']} bframes={options['bframes']} ! "
        "rtph264pay name=pay0 pt=96 config-interval=1 )"
    )


def feed(path: str, size: int, sources: list[Any]) -> None:
    """Each picture of the fifo to whoever is served, as it comes."""
    with open(path, "rb") as fifo:
        while len(picture := fifo.read(size)) == size:
            for source in sources[-1:]:
                source.emit("push-buffer", Gst.Buffer.new_wrapped(picture))


def main() -> None:
    options = OPTIONS | dict(argument.split("=", 1) for argument in sys.argv[1:])
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options["port"])
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(pipeline(options))
    factory.set_shared(True)
    factory.set_latency(0)
    if "user" in options:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", options["user"])
        auth.set_supported_methods(2)  # digest
        auth.add_digest(options["user"], options["password"], token)
        server.set_auth(auth)
        role = Gst.Structure.new_empty(options["user"])
        role.set_value("media.factory.access", True)
        role.set_value("media.factory.construct", True)
        factory.add_role_from_structure(role)
    if "fifo" in options:
        width, height = map(int, options["size"].split("x"))
        sources: list[Any] = []

        def configured(_: object, media: Any) -> None:
            sources.append(media.get_element().get_by_name_recurse_up("camera"))

        factory.connect("media-configure", configured)
        arguments = (options["fifo"], width * height * 3 // 2, sources)
        threading.Thread(target=feed, args=arguments, daemon=True).start()
    server.get_mount_points().add_factory("/camera", factory)
    server.attach(None)
    loop = GLib.MainLoop()
    print(json.dumps({"port": server.get_bound_port()}), flush=True)

    def stop_with_input() -> None:
        sys.stdin.read()
        GLib.idle_add(loop.quit)

    threading.Thread(target=stop_with_input, daemon=True).start()
    loop.run()


if __name__ == "__main__":
    main()
