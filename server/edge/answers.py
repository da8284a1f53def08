"""What is said about one picture, in the words of each door, as JSON takes it. Pure functions."""

from collections.abc import Sequence
from typing import Any

from server.clock import ns_to_ms
from server.detections import Detections
from server.frame import Stamps


def stages_json(stamps: Stamps) -> dict[str, float]:
    """Where the time of one picture went, by stage."""
    return {name: round(value, 3) for name, value in stamps.stages_ms().items()}


def server_ms(stamps: Stamps) -> float:
    """From the whole picture in to its answer ready."""
    return round(ns_to_ms(stamps.handed_out_at_ns - stamps.received_at_ns), 3)


def class_name(names: Sequence[str], class_id: int) -> str:
    return names[class_id] if class_id < len(names) else f"cls{class_id}"


def stream_yolo_rows(detections: Detections, names: Sequence[str]) -> list[dict[str, Any]]:
    """Whole pixels, cut towards zero, and scores of four places."""
    rows = zip(
        detections.xyxy.astype(int).tolist(),
        detections.confidence.tolist(),
        detections.class_id.tolist(),
        strict=True,
    )
    return [
        {
            "box": box,
            "score": round(confidence, 4),
            "label": class_id,
            "name": class_name(names, class_id),
        }
        for box, confidence, class_id in rows
    ]


def detection_rows(detections: Detections, names: Sequence[str]) -> list[dict[str, Any]]:
    """Our own: tenths of pixels, best first; landmarks where the model finds them."""
    rows = []
    for (*box, class_id, confidence, _), row in zip(
        detections.to_rows(), range(len(detections)), strict=True
    ):
        found = {
            "box": box,
            "confidence": confidence,
            "class_id": class_id,
            "class": class_name(names, detections.class_id[row]),
        }
        if detections.landmarks is not None:
            points = detections.landmarks[row]
            # Rows of a model without landmarks hold none.
            if bool((points == points).all()):
                found["landmarks"] = points.round(1).tolist()
        rows.append(found)
    return rows


def deepstack_predictions(detections: Detections, names: Sequence[str]) -> list[dict[str, Any]]:
    """Best first, because Frigate stops reading at the first weak one."""
    width, height = detections.size_wh
    corners = detections.xyxy.round().astype(int)
    corners[:, 0::2] = corners[:, 0::2].clip(0, width)
    corners[:, 1::2] = corners[:, 1::2].clip(0, height)
    rows = zip(
        corners.tolist(),
        detections.confidence.tolist(),
        detections.class_id.tolist(),
        strict=True,
    )
    predictions = [
        {
            "label": class_name(names, class_id),
            "confidence": round(confidence, 4),
            "x_min": x_min,
            "y_min": y_min,
            "x_max": x_max,
            "y_max": y_max,
        }
        for (x_min, y_min, x_max, y_max), confidence, class_id in rows
    ]
    return sorted(predictions, key=lambda found: -found["confidence"])


def deepstack_refusal(status: int, text: str) -> dict[str, Any]:
    """What clients of DeepStack and CodeProject.AI understand as an error."""
    return {"success": False, "error": text, "code": status, "predictions": [], "duration": 0}
