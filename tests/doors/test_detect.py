"""Pictures over HTTP: our own route, and DeepStack's as its callers use it."""

import asyncio
import io
from typing import Any

import cv2
import numpy as np
import pytest
from aiohttp import FormData

from server.detections import Detected, Detections
from tests.doors.files import bomb_png, cmyk_jpeg, jpeg, photograph, png, truncated_jpeg, wide_jpeg
from tests.doors.opening import open_server
from tests.fakes import FakeDetector
from tests.gate.guarded import FRONT, PUBLISHER, guarded
from tests.serving import DEADLINE_S, Serving

pytestmark = pytest.mark.service

JPEG, PNG = {"Content-Type": "image/jpeg"}, {"Content-Type": "image/png"}


class WeakAndStrong(FakeDetector):
    """Finds two things in every picture, the second partly outside of it."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("person", "dog")

    def detect(self, pictures: Any) -> list[Detected]:
        answers = []
        for answer, picture in zip(super().detect(pictures), pictures, strict=True):
            width, height = picture.size_wh
            found = Detections(
                np.array([[1.4, 2.6, 10.5, 20.4], [5, 6, width, height]], np.float32),
                np.array([0.91234, 0.45], np.float32),
                np.array([1, 0], np.int32),
                (width, height),
            )
            stages = (answer.prepared_at_ns, answer.inferred_at_ns, answer.boxed_at_ns)
            answers.append(Detected(found, *stages))
        return answers


async def post(
    server: Serving, path: str, data: Any, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Status and body."""
    request = server.http.post(server.url + path, data=data, headers=headers)
    async with asyncio.timeout(DEADLINE_S), request as reply:
        if reply.content_type.endswith("json"):
            return reply.status, await reply.json()
        return reply.status, await reply.read()


def form(**fields: Any) -> FormData:
    data = FormData(default_to_multipart=True)
    for name, value in fields.items():
        filename = f"{name}.jpg" if isinstance(value, bytes) else None
        data.add_field(name, value, filename=filename)
    return data


def corners(x_min: int, y_min: int, x_max: int, y_max: int) -> dict[str, int]:
    return {"x_min": x_min, "y_min": y_min, "x_max": x_max, "y_max": y_max}


# --- POST /api/detect ---


@pytest.mark.parametrize(("data", "headers"), [(jpeg(64, 48), JPEG), (png(64, 48), PNG)])
async def test_one_picture_gets_its_detections(data: bytes, headers: dict[str, str]) -> None:
    async with open_server(WeakAndStrong()) as server:
        status, body = await post(server, "/api/detect", data, headers)
        assert status == 200
        assert body["model"] == "fake"
        [picture] = body["pictures"]
        assert picture["size"] == [64, 48]
        assert picture["detections"] == [
            {"box": [1.4, 2.6, 10.5, 20.4], "confidence": 0.912, "class_id": 1, "class": "dog"},
            {"box": [5, 6, 64, 48], "confidence": 0.45, "class_id": 0, "class": "person"},
        ]
        assert picture["server_ms"] > 0


async def test_query_chooses_confidence_and_classes() -> None:
    async with open_server(WeakAndStrong()) as server:
        for query, expected in (
            ("?confidence=0.5", ["dog"]),
            ("?classes=person", ["person"]),
            ("?classes=person,dog&confidence=0.2", ["dog", "person"]),
            ("?classes=cat", []),
        ):
            _, body = await post(server, "/api/detect" + query, jpeg(64, 48), JPEG)
            found = [row["class"] for row in body["pictures"][0]["detections"]]
            assert found == expected


async def test_pictures_of_a_form_are_answered_in_order_and_a_wrong_one_spoils_no_other() -> None:
    async with open_server(WeakAndStrong()) as server:
        data = form(first=jpeg(64, 48), broken=b"no picture", last=png(32, 24))
        status, body = await post(server, "/api/detect", data)
        assert status == 200
        first, broken, last = body["pictures"]
        assert (first["name"], first["size"]) == ("first.jpg", [64, 48])
        assert "neither JPEG nor PNG" in broken["error"]
        assert last["size"] == [32, 24]


async def test_annotated_picture_has_boxes_drawn_on_it() -> None:
    async with open_server(FakeDetector(name="astronaut")) as server:
        plain = photograph()
        url = f"{server.url}/api/detect?annotate=1"
        async with server.http.post(url, data=plain, headers=JPEG) as reply:
            assert (reply.status, reply.content_type) == (200, "image/jpeg")
            assert reply.headers["X-Detections"] == "1"
            drawn = cv2.imdecode(np.frombuffer(await reply.read(), np.uint8), cv2.IMREAD_COLOR)
        before = cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR)
        assert drawn is not None
        assert before is not None
        height, width = drawn.shape[:2]
        changed = np.abs(drawn.astype(int) - before[:height, :width]).max(axis=2)
        # The box's left edge is drawn; a corner far from the box is as it was.
        assert changed[height // 3 : height // 2, width // 4 : width // 4 + 2].min() > 40
        assert changed[-20:, -20:].max() < 40
        status, _ = await post(server, "/api/detect?annotate=1", form(a=plain, b=plain))
        assert status == 422


@pytest.mark.parametrize(
    ("data", "content_type", "status", "word"),
    [
        (b"", "image/jpeg", 400, "empty"),
        (b"no picture", "image/jpeg", 400, "neither"),
        (truncated_jpeg(), "image/jpeg", 400, "ends early"),
        (png(64, 48)[:60], "image/png", 400, "cannot be decoded"),
        (wide_jpeg(10_000, 10_000), "image/jpeg", 413, "max_image_megapixels"),
        (bomb_png(60_000, 60_000), "image/png", 413, "max_image_megapixels"),
        (bytes(17 << 20), "image/jpeg", 413, "max_image_mib"),
        (jpeg(64, 48), "text/plain", 415, "text/plain"),
        (jpeg(64, 48), "multipart/form-data", 400, "boundary"),
        (jpeg(64, 48), "multipart/form-data; boundary=x", 400, "not a whole form"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 400, "without pictures"),
        (b"--x\r\nA: b\r\n\r\nc\r\n--x--", "multipart/form-data; boundary=x", 400, "no name"),
        (b"--x\r\n" * 1000 + b"--x--", "multipart/form-data; boundary=x", 400, "parts"),
    ],
)
async def test_a_wrong_body_gets_a_problem_that_says_why(
    data: bytes, content_type: str, status: int, word: str
) -> None:
    async with open_server(FakeDetector()) as server:
        body_file = io.BytesIO(data)
        found, body = await post(server, "/api/detect", body_file, {"Content-Type": content_type})
        assert found == status, body
        assert set(body) == {"type", "title", "status", "detail"}
        assert word in body["detail"]
        assert (await post(server, "/api/detect", jpeg(64, 48), JPEG))[0] == 200


async def test_cmyk_is_taken() -> None:
    async with open_server(FakeDetector()) as server:
        status, body = await post(server, "/api/detect", cmyk_jpeg(64, 48), JPEG)
        assert (status, body["pictures"][0]["size"]) == (200, [64, 48])


async def test_a_request_too_many_gets_503_and_the_others_are_answered() -> None:
    detector = FakeDetector()
    detector.go_on.clear()
    limit = {"max_detect_requests": 2, "answer_timeout_s": 20.0}
    async with open_server(detector, images=limit) as server:
        asked = [
            asyncio.create_task(post(server, "/api/detect", jpeg(64, 48), JPEG)) for _ in range(2)
        ]
        await asyncio.to_thread(detector.entered.wait, DEADLINE_S)
        url = f"{server.url}/api/detect"
        async with asyncio.timeout(DEADLINE_S):
            while True:
                async with server.http.post(url, data=b"", headers=JPEG) as reply:
                    if reply.status == 503:
                        assert reply.headers["Retry-After"] == "1"
                        break
        detector.go_on.set()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200, 200]


async def test_without_an_answer_in_time_there_is_503_and_the_memory_is_given_back() -> None:
    detector = FakeDetector()
    detector.go_on.clear()
    try:
        async with open_server(detector, images={"answer_timeout_s": 0.3}) as server:
            status, body = await post(server, "/api/detect", jpeg(64, 48), JPEG)
            assert status == 503
            assert "answer_timeout_s" in body["detail"]
            told = (await server.stats())["pictures"]
            assert (told["waiting"], told["waiting_megapixels"]) == (0, 0)
            assert told["doors"]["detect"]["refused"] == {"unavailable": 1}
    finally:
        detector.go_on.set()


async def test_many_pictures_at_once_share_the_memory_there_is() -> None:
    images = {"image_memory_megapixels": 0.02, "max_image_megapixels": 0.01}
    async with open_server(FakeDetector(), images=images) as server:
        asked = [post(server, "/api/detect", jpeg(100, 90), JPEG) for _ in range(12)]
        assert {status for status, _ in await asyncio.gather(*asked)} == {200}


async def test_what_was_asked_and_answered_is_counted_by_door() -> None:
    async with open_server(FakeDetector()) as server:
        await post(server, "/api/detect", jpeg(64, 48), JPEG)
        await post(server, "/api/detect", b"", JPEG)
        await post(server, "/v1/vision/detection", form(image=jpeg(64, 48)))
        async with server.http.get(f"{server.url}/metrics") as reply:
            page = await reply.text()
        for line in (
            'sightline_picture_requests_total{door="detect"} 2.0',
            'sightline_pictures_answered_total{door="detect"} 1.0',
            'sightline_pictures_refused_total{door="detect",reason="malformed"} 1.0',
            'sightline_pictures_answered_total{door="deepstack"} 1.0',
            "sightline_picture_decode_seconds_count 2.0",
        ):
            assert line in page


# --- DeepStack and CodeProject.AI ---


async def test_deepstack_answer_field_by_field() -> None:
    async with open_server(WeakAndStrong()) as server:
        status, body = await post(
            server, "/v1/vision/detection", form(image=jpeg(64, 48), min_confidence="0.4")
        )
        assert status == 200
        assert body["success"] is True
        assert body["predictions"] == [
            {"label": "dog", "confidence": 0.9123} | corners(1, 3, 10, 20),
            {"label": "person", "confidence": 0.45} | corners(5, 6, 64, 48),
        ]  # fmt: skip
        confidences = [found["confidence"] for found in body["predictions"]]
        assert confidences == sorted(confidences, reverse=True)
        assert body["count"] == 2
        assert body["code"] == 200
        assert body["command"] == "detect"
        assert body["message"] == "Found dog, person"
        assert body["moduleId"]
        assert body["moduleName"]
        assert body["executionProvider"] == "fake"
        assert body["canUseGPU"] is False
        for name in ("duration", "inferenceMs", "processMs", "analysisRoundTripMs"):
            assert type(body[name]) is int, name


async def test_min_confidence_is_04_unless_said() -> None:
    class Weak(WeakAndStrong):
        def detect(self, pictures: Any) -> list[Detected]:
            return [
                Detected(
                    Detections(
                        found.detections.xyxy,
                        np.array([0.41, 0.39], np.float32),
                        found.detections.class_id,
                        found.detections.size_wh,
                    ),
                    found.prepared_at_ns,
                    found.inferred_at_ns,
                    found.boxed_at_ns,
                )
                for found in super().detect(pictures)
            ]

    async with open_server(Weak()) as server:
        for fields, count in (
            ({}, 1),
            ({"min_confidence": "0.3"}, 2),
            ({"min_confidence": "1"}, 0),
        ):
            _, body = await post(server, "/v1/vision/detection", form(image=jpeg(64, 48), **fields))
            assert body["count"] == count
        status, body = await post(
            server, "/v1/vision/detection", form(image=jpeg(64, 48), min_confidence="high")
        )
        assert (status, body["success"]) == (422, False)


@pytest.mark.parametrize(
    ("data", "headers", "status"),
    [
        (form(image=b"no picture"), None, 400),
        (form(image=truncated_jpeg()), None, 400),
        (form(image=wide_jpeg(10_000, 10_000)), None, 413),
        (form(min_confidence="0.4"), None, 400),
        (jpeg(64, 48), JPEG, 415),
    ],
)
async def test_deepstack_refusals_have_its_shape(
    data: Any, headers: dict[str, str] | None, status: int
) -> None:
    async with open_server(FakeDetector()) as server:
        found, body = await post(server, "/v1/vision/detection", data, headers)
        assert found == status
        assert body["success"] is False
        assert body["error"]
        assert body["code"] == status
        assert body["predictions"] == []


async def test_frigates_loop_reads_our_answer() -> None:
    """What Frigate's detector does with an answer, by its rules: it stops at the first one below
    0.4 or with a label it does not know, and puts truck to car."""
    labels = {0: "person", 1: "dog"}
    async with open_server(WeakAndStrong()) as server:
        # As `requests` sends `files={"image": bytes}` with `data={"api_key": ""}`.
        data = FormData({"api_key": ""})
        data.add_field("image", jpeg(320, 320), filename="image")
        _, body = await post(server, "/v1/vision/detection", data)
    rows = []
    for found in body["predictions"]:
        index = next((key for key, name in labels.items() if name == found["label"]), -1)
        if found["confidence"] < 0.4 or index < 0:
            break
        rows.append((index, found["y_min"] / 320, found["x_min"] / 320, found["y_max"] / 320))
    assert rows == [(1, 3 / 320, 1 / 320, 20 / 320), (0, 6 / 320, 5 / 320, 1.0)]


async def test_custom_models_are_those_that_run() -> None:
    async with open_server(FakeDetector(name="nano")) as server:
        _, body = await post(server, "/v1/vision/custom/list", None)
        assert body["models"] == ["nano"]
        status, body = await post(server, "/v1/vision/custom/nano", form(image=jpeg(64, 48)))
        assert (status, body["command"]) == (200, "custom")
        status, body = await post(server, "/v1/vision/custom/other", form(image=jpeg(64, 48)))
        assert (status, body["success"]) == (404, False)
        async with server.http.get(f"{server.url}/v1/status/ping") as reply:
            assert (await reply.json())["success"] is True


async def test_deepstack_callers_sign_in_by_the_field_api_key() -> None:
    async with guarded() as server:
        cases: tuple[tuple[dict[str, Any], int], ...] = (
            ({}, 401),
            ({"api_key": ""}, 401),
            ({"api_key": "x" * 40}, 401),
            ({"api_key": FRONT}, 403),
            ({"api_key": PUBLISHER}, 200),
        )
        for fields, expected in cases:
            data = form(image=jpeg(64, 48), **fields)
            status, body = await server.ask("POST", "/v1/vision/detection", data=data)
            assert status == expected
            assert body["success"] is (expected == 200)
            assert PUBLISHER not in str(body)
        for path in ("/v1/vision/custom/list", "/api/detect"):
            status, _ = await server.ask("POST", path, data=form(image=jpeg(64, 48)))
            assert status == 401
