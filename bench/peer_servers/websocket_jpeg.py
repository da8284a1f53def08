"""JPEG in, JSON out, over WebSocket: FastAPI and uvicorn, the shape of the usual YOLO server.

One binary message is one picture; one text message answers each, in order. Detection runs in the
default executor, so that the loop stays free. `/ws/stream` and the answer's keys are the ones that
known clients of such servers speak.
"""

import argparse
import asyncio
from typing import Any

import cv2
import numpy as np
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from bench.peer_servers import finder as detector
from bench.peer_servers.finder import Finder

MAX_MESSAGE_BYTES = 16 * 2**20


def application(finder: Finder) -> FastAPI:
    app = FastAPI()

    def look(message: bytes) -> dict[str, Any]:
        bgr = cv2.imdecode(np.frombuffer(message, np.uint8), cv2.IMREAD_COLOR)
        if bgr is None:
            return {"error": "invalid image"}
        return {
            "detections": [
                {
                    "box": [int(side) for side in found.xyxy],
                    "score": round(found.confidence, 4),
                    "label": found.class_id,
                    "name": found.name,
                }
                for found in finder.find(bgr.astype(np.uint8, copy=False))
            ]
        }

    @app.get("/readyz")
    async def ready() -> dict[str, Any]:
        return {"ready": True}

    @app.get("/api/stats")
    async def stats() -> dict[str, Any]:
        return detector.statistics(finder)

    @app.websocket("/ws/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                message = await socket.receive_bytes()
                loop = asyncio.get_running_loop()
                await socket.send_json(await loop.run_in_executor(None, look, message))
        except WebSocketDisconnect:
            return

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    detector.add_arguments(parser)
    options = parser.parse_args()
    app = application(detector.made_from(options))
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=options.port,
        log_level="warning",
        ws_max_size=MAX_MESSAGE_BYTES,
    )


if __name__ == "__main__":
    main()
