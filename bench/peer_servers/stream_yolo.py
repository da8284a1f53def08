"""The usual YOLO server of stream-yolo's shape, written here from the protocol alone.

FastAPI and uvicorn, a JPEG or PNG a message, JSON back; OpenCV decodes and stretches the picture
to the model's input, onnxruntime's CPU provider runs it in FP32 in the default executor, and one
session serves all clients. Knows models whose output is N x 6, such as YOLO26. Nothing of the
product is imported.
"""

import argparse
import ast
import asyncio
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

CONFIDENCE = 0.4
MAX_MESSAGE_BYTES = 16 * 2**20


class Model:
    """Any thread."""

    def __init__(self, path: str) -> None:
        options = ort.SessionOptions()
        # Log nothing below an error.
        options.log_severity_level = 3
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        given = self._session.get_inputs()[0]
        self._input = given.name
        sides = given.shape[2:]
        height, width = (side if isinstance(side, int) else 640 for side in sides)
        self._size_wh = (width, height)
        told = self._session.get_modelmeta().custom_metadata_map.get("names", "{}")
        self._names = ast.literal_eval(told)
        rows = self._session.run(None, {self._input: np.zeros((1, 3, height, width), np.float32)})
        if rows[0].ndim != 3 or rows[0].shape[2] != 6:
            raise SystemExit(
                f"model: its output is {rows[0].shape}, not 1 x N x 6 as YOLO26 has it"
            )

    def look(self, message: bytes) -> dict[str, Any]:
        """The answer to one picture."""
        bgr = cv2.imdecode(np.frombuffer(message, np.uint8), cv2.IMREAD_COLOR)
        if bgr is None:
            return {"error": "invalid image"}
        height, width = bgr.shape[:2]
        values = cv2.resize(bgr, self._size_wh).astype(np.float32) / 255
        tensor = np.ascontiguousarray(values.transpose(2, 0, 1)[None])
        rows = self._session.run(None, {self._input: tensor})[0][0]
        scale = np.array([width / self._size_wh[0], height / self._size_wh[1]] * 2)
        found = []
        for *box, score, label in rows[rows[:, 4] >= CONFIDENCE]:
            sides = (np.array(box) * scale).astype(int).tolist()
            name = self._names.get(int(label), f"cls{int(label)}")
            found.append(
                {
                    "box": sides,
                    "score": round(float(score), 4),
                    "label": int(label),
                    "name": name,
                }
            )
        return {"detections": found}


def application(model: Model) -> FastAPI:
    app = FastAPI()

    @app.get("/")
    @app.get("/readyz")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model_loaded": True}

    @app.websocket("/ws/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                message = await socket.receive_bytes()
                loop = asyncio.get_running_loop()
                await socket.send_json(await loop.run_in_executor(None, model.look, message))
        except WebSocketDisconnect:
            return

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="path of the ONNX file")
    options = parser.parse_args()
    app = application(Model(options.model))
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=options.port,
        log_level="warning",
        ws_max_size=MAX_MESSAGE_BYTES,
    )


if __name__ == "__main__":
    main()
