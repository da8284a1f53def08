"""Pictures in, detections out, over HTTP: `POST /api/detect`, and what callers of DeepStack and
CodeProject.AI expect (Frigate, Viseron, Home Assistant, Blue Iris).
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web

from server.call_options import CallOptions, query_options
from server.clock import ns_to_ms
from server.desk import Answer, Desk
from server.edge.answers import (
    class_name,
    deepstack_predictions,
    detection_rows,
    server_ms,
    stages_json,
)
from server.edge.form import Field, parse_form
from server.edge.gate import GATE, read_body
from server.errors import (
    MalformedError,
    NotFoundError,
    RequestError,
    SightlineError,
    UnauthorizedError,
    UnavailableError,
    UnprocessableError,
    UnsupportedTypeError,
)
from server.images import encode_jpeg
from server.overlay import Painter
from server.pixels import copy_yuv420p, plane_views
from server.settings import Settings

FORM = "multipart/form-data"
PICTURE_TYPES = ("image/jpeg", "image/jpg", "image/png", "application/octet-stream")
BUSY_RETRY_S = 1
DEEPSTACK_CONFIDENCE = 0.4


class PictureTypeError(UnsupportedTypeError):
    """A POST that is neither a picture nor a form; the answer names what is."""

    @property
    def headers(self) -> dict[str, str]:
        return {"Accept-Post": f"image/jpeg, image/png, {FORM}"}


@dataclass(frozen=True, slots=True)
class DetectApi:
    """The handlers; bound: max_detect_requests at a time."""

    settings: Settings
    desk: Desk
    served: dict[str, str] = field(default_factory=dict)
    """The requests that are being served: their key at the detector, and the door."""

    def routes(self) -> list[web.AbstractRouteDef]:
        return [
            web.post("/api/detect", self.detect),
            web.post("/v1/vision/detection", self.deepstack),
            web.post("/v1/vision/custom/list", self.custom_models),
            web.post("/v1/vision/custom/{model}", self.deepstack),
            web.get("/v1/status/ping", self.ping),
        ]

    # --- our own ---

    async def detect(self, request: web.Request) -> web.Response:
        """`POST /api/detect`: what is in one picture, or in each picture of a form.

        The body is a JPEG or PNG, or a form whose fields are such. With `annotate=1` and one
        picture the answer is that picture with boxes drawn, as JPEG.
        """
        async with self._serve("detect") as key:
            options = query_options(request.query, self.settings.session.confidence)
            annotate = request.query.get("annotate", "0").lower() in ("1", "true", "yes")
            pictures = await self._pictures(request)
            if annotate:
                if len(pictures) != 1:
                    raise UnprocessableError("annotate: one picture a request is drawn on")
                answer = await self._ask(key, "detect", options, pictures[0].data)
                return await self._drawn(answer)
            rows = [await self._row(key, options, picture) for picture in pictures]
        return web.json_response({"model": "+".join(self._models()), "pictures": rows})

    async def _pictures(self, request: web.Request) -> list[Field]:
        body = await self._body(request)
        if request.content_type == FORM:
            fields = parse_form(request.headers["Content-Type"], body)
            if not fields:
                raise MalformedError("body: a form without pictures")
            return fields
        if request.content_type not in PICTURE_TYPES:
            raise PictureTypeError(
                f"Content-Type: {request.content_type[:60]} is none of image/jpeg, image/png "
                f"and {FORM}"
            )
        return [Field("", "", body)]

    async def _row(self, key: str, options: CallOptions, picture: Field) -> dict[str, Any]:
        name = picture.filename or picture.name
        try:
            answer = await self._ask(key, "detect", options, picture.data)
        except RequestError as error:
            if not name:
                raise
            # The other pictures of the form are answered.
            self.desk.count_refusal("detect", error)
            return {"name": name, "error": str(error)}
        return {
            "name": name,
            "size": list(answer.detections.size_wh),
            "detections": detection_rows(answer.detections, answer.shot.names),
            "stages_ms": stages_json(answer.stamps),
            "server_ms": server_ms(answer.stamps),
        }

    async def _drawn(self, answer: Answer) -> web.Response:
        def draw() -> bytes:
            picture = copy_yuv420p(answer.shot.frame.video_frame)
            Painter().draw(plane_views(picture), answer.detections, answer.shot.names)
            return encode_jpeg(picture)

        loop = asyncio.get_running_loop()
        jpeg = await loop.run_in_executor(self.desk.decoders, draw)
        count = str(len(answer.detections))
        return web.Response(body=jpeg, content_type="image/jpeg", headers={"X-Detections": count})

    # --- DeepStack and CodeProject.AI ---

    async def deepstack(self, request: web.Request) -> web.Response:
        """`POST /v1/vision/detection`: the form field `image` as DeepStack and CodeProject.AI
        answer it; also `min_confidence` and `api_key`."""
        async with self._serve("deepstack") as key:
            fields = await self._form(request)
            await self._sign_in(request, fields)
            wanted = request.match_info.get("model")
            if wanted is not None and wanted not in self._models():
                raise NotFoundError(f"model: {wanted[:60]} does not run here")
            images = [one for one in fields if one.filename or one.name == "image"]
            if not images:
                raise MalformedError("image: no such field in the form")
            options = replace(CallOptions(), confidence=_min_confidence(fields))
            answer = await self._ask(key, "deepstack", options, images[0].data)
        return web.json_response(self._deepstack_json(answer, wanted))

    async def custom_models(self, request: web.Request) -> web.Response:
        """`POST /v1/vision/custom/list`: the models that run, for Blue Iris."""
        gate = request.app[GATE]
        if gate.needs_sign_in(request):
            fields = parse_form(request.headers.get("Content-Type", ""), await request.read())
            await self._sign_in(request, fields)
        return web.json_response({"success": True, "models": self._models(), "code": 200})

    async def ping(self, request: web.Request) -> web.Response:
        """`GET /v1/status/ping`: there is somebody."""
        return web.json_response({"success": True, "code": 200})

    def _models(self) -> list[str]:
        return [engine.model for engine in self.desk.inference.statistics().engines]

    def _deepstack_json(self, answer: Answer, model: str | None) -> dict[str, Any]:
        stamps, names = answer.stamps, answer.shot.names
        engines = self.desk.inference.statistics().engines
        provider = "+".join(dict.fromkeys(engine.provider for engine in engines))
        found = [class_name(names, class_id) for class_id in answer.detections.class_id.tolist()]
        total_ms = round(server_ms(stamps))
        return {
            "success": True,
            "message": f"Found {', '.join(dict.fromkeys(found))}" if found else "No objects found",
            "predictions": deepstack_predictions(answer.detections, names),
            "count": len(answer.detections),
            "duration": total_ms,
            "command": "detect" if model is None else "custom",
            "moduleId": "Sightline",
            "moduleName": "Sightline",
            "code": 200,
            "inferenceMs": round(ns_to_ms(stamps.inferred_at_ns - stamps.prepared_at_ns)),
            "processMs": total_ms,
            "analysisRoundTripMs": total_ms,
            "executionProvider": provider,
            "canUseGPU": provider in ("cuda", "tensorrt", "coreml", "directml"),
        }

    async def _form(self, request: web.Request) -> list[Field]:
        if request.content_type != FORM:
            raise UnsupportedTypeError(f"Content-Type: {FORM} is wanted")
        return parse_form(request.headers["Content-Type"], await self._body(request))

    async def _sign_in(self, request: web.Request, fields: list[Field]) -> None:
        """By the field `api_key`, where it was not said with the headers."""
        gate = request.app[GATE]
        if not gate.needs_sign_in(request):
            return
        keys = [one.text for one in fields if one.name == "api_key"]
        try:
            await gate.sign_in(request, f"Bearer {keys[0]}" if keys else None)
        except UnauthorizedError as error:
            raise UnauthorizedError(f"api_key: {error}") from None

    # --- both ---

    @asynccontextmanager
    async def _serve(self, door: str) -> AsyncIterator[str]:
        """One request more; yields its key at the detector."""
        self.desk.count_request(door)
        try:
            limit = self.settings.images.max_detect_requests
            if len(self.served) >= limit:
                raise UnavailableError(
                    f"max_detect_requests: {limit} detection requests are being served",
                    BUSY_RETRY_S,
                )
            key = secrets.token_urlsafe(12)
            self.served[key] = door
            try:
                yield key
            finally:
                del self.served[key]
        except SightlineError as error:
            self.desk.count_refusal(door, error)
            raise

    async def _ask(self, key: str, door: str, options: CallOptions, data: bytes) -> Answer:
        asker = self.desk.asker(door, key, options)
        try:
            return await asker.ask(data)
        finally:
            asker.close()

    async def _body(self, request: web.Request) -> bytes:
        at_most = self.settings.images.max_image_mib * 2**20
        return await read_body(request, at_most, self.settings.limits.body_timeout_s)


def _min_confidence(fields: list[Field]) -> float:
    texts = [one.text for one in fields if one.name == "min_confidence"]
    if not texts:
        return DEEPSTACK_CONFIDENCE
    try:
        confidence = float(texts[0])
    except ValueError:
        confidence = -1.0
    if not 0 <= confidence <= 1:
        raise UnprocessableError("min_confidence: not a number within 0 to 1")
    return confidence
