"""streamlit-webrtc's server side without its page: one `WebRtcWorker` a call.

The page's part, carrying offer and answer through Streamlit's own socket, is done over HTTP here.
What a picture goes through is the library's own, with its defaults: the callback runs in a thread
of its own (`async_processing`).
"""

import asyncio
from typing import TYPE_CHECKING

from aiortc import RTCSessionDescription
from aiortc.contrib.media import MediaRelay
from av import VideoFrame
from streamlit_webrtc.webrtc import WebRtcMode, WebRtcWorker

from bench.peer_servers import calls

if TYPE_CHECKING:
    from bench.peer_servers.finder import Finder

ANSWER_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 2.0


class StreamlitCalls:
    """Loop only; the library's blocking calls are made on a thread."""

    def __init__(self, finder: "Finder") -> None:
        self._finder = finder
        self._loop = asyncio.get_running_loop()
        self._relay = MediaRelay()
        self._workers: dict[str, WebRtcWorker] = {}

    async def answer(self, session: str, offer: RTCSessionDescription) -> RTCSessionDescription:
        worker = self._workers[session] = self._worker()
        answer: RTCSessionDescription = await asyncio.to_thread(
            worker.process_offer, offer.sdp, offer.type, ANSWER_TIMEOUT_S
        )
        return answer

    async def end(self, session: str) -> None:
        worker = self._workers.pop(session, None)
        if worker is not None:
            await asyncio.to_thread(worker.stop, STOP_TIMEOUT_S)

    def sessions(self) -> list[str]:
        return list(self._workers)

    def _on_frame(self, frame: VideoFrame) -> VideoFrame:
        annotated = self._finder.annotate(frame.to_ndarray(format="bgr24"))
        return VideoFrame.from_ndarray(annotated, format="bgr24")

    def _worker(self) -> WebRtcWorker:
        return WebRtcWorker(
            mode=WebRtcMode.SENDRECV,
            rtc_configuration=None,
            source_video_track=None,
            source_audio_track=None,
            sink_video_track=None,
            sink_audio_track=None,
            player_factory=None,
            in_recorder_factory=None,
            out_recorder_factory=None,
            video_frame_callback=self._on_frame,
            audio_frame_callback=None,
            queued_video_frames_callback=None,
            queued_audio_frames_callback=None,
            on_video_ended=None,
            on_audio_ended=None,
            video_processor_factory=None,
            audio_processor_factory=None,
            async_processing=True,
            video_receiver_size=4,
            audio_receiver_size=4,
            sendback_video=True,
            sendback_audio=False,
            loop=self._loop,
            relay=self._relay,
        )


if __name__ == "__main__":
    calls.run(StreamlitCalls, __doc__)
