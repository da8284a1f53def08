"""FastRTC as its users run it: a `Stream` with a handler, mounted on FastAPI, under uvicorn.

FastRTC hands pictures through until the call has been given its input, so that is done for each
call as its own pages do; from then on the handler sees every picture.
"""

import argparse
import secrets
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastrtc import Stream
from fastrtc.stream import Body

from bench.peer_servers import finder as detector
from bench.peer_servers.contract import answer_body
from bench.peer_servers.finder import BgrArray, Finder

CALLS_AT_MOST = 64


def application(finder: Finder) -> FastAPI:
    # FastRTC sets an attribute on its handler, which a bound method does not take.
    def annotate(bgr: BgrArray) -> BgrArray:
        return finder.annotate(bgr)

    stream = Stream(
        handler=annotate,
        modality="video",
        mode="send-receive",
        concurrency_limit=CALLS_AT_MOST,
    )
    app = FastAPI()
    stream.mount(app)

    @app.get("/readyz")
    async def ready() -> dict[str, Any]:
        return {"ready": True}

    @app.get("/api/stats")
    async def stats() -> dict[str, Any]:
        return detector.statistics(finder)

    @app.post("/offer")
    async def offer(request: Request) -> dict[str, Any]:
        body = await request.json()
        session = secrets.token_hex(8)
        answer = await stream.offer(Body(sdp=body["sdp"], type="offer", webrtc_id=session))
        stream.set_input(session, None)
        return answer_body(session, answer["sdp"], finder)

    @app.delete("/sessions/{session}")
    async def delete(session: str) -> dict[str, Any]:
        connection = stream.pcs.get(session)
        if connection is not None:
            await connection.close()
        return {}

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    detector.add_arguments(parser)
    options = parser.parse_args()
    app = application(detector.made_from(options))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
