"""Which family a model belongs to: said by its sidecar or metadata, or seen in its outputs."""

from collections.abc import Callable
from dataclasses import replace

from server.detector.heads import (
    detr,
    end2end,
    nanodet,
    ssd,
    yolov5,
    yolov8,
    yolox,
    yunet,
)
from server.detector.spec import Facts, Head
from server.errors import UnknownModelError

Recogniser = Callable[[Facts], Head | None]

# Name, recogniser and shape of its outputs. The order matters where two could take the same
# shape: names and finished boxes are surer signs than row counts.
FAMILIES: tuple[tuple[str, Recogniser, str], ...] = (
    (yunet.FAMILY, yunet.recognise, yunet.SHAPE),
    (end2end.FAMILY, end2end.recognise, end2end.SHAPE),
    (end2end.OWN_FAMILY, end2end.recognise, end2end.SHAPE),
    (detr.FAMILY, detr.recognise, detr.SHAPE),
    (ssd.FAMILY, ssd.recognise, ssd.SHAPE),
    (yolov8.FAMILY, yolov8.recognise, yolov8.SHAPE),
    (yolov5.FAMILY, yolov5.recognise, yolov5.SHAPE),
    (yolox.FAMILY, yolox.recognise, yolox.SHAPE),
    (nanodet.FAMILY, nanodet.recognise, nanodet.SHAPE),
)
# What people call members of a family.
ALIASES = {
    "yolov10": "yolo26",
    "yolov9": "yolov8",
    "yolo11": "yolov8",
    "yolo12": "yolov8",
    "yolov6": "yolox",
    "yolov7": "yolov5",
    "rtdetr": "detr",
    "dfine": "detr",
    "rfdetr": "detr",
    "ultraface": "ssd",
}


def recognise(facts: Facts) -> Head:
    """The head that decodes this model; UnknownModelError says what was found otherwise."""
    family = facts.family
    if family is not None:
        spelled = family.lower().replace("-", "").replace("_", "")
        family = ALIASES.get(spelled, spelled)
    known = [name for name, _, _ in FAMILIES]
    if family is not None and family not in known:
        raise UnknownModelError(
            f"{facts.model}: family {facts.family!r} is not known; known are {', '.join(known)}"
        )
    facts = replace(facts, family=family)
    for name, recogniser, _ in FAMILIES:
        if family in (None, name):
            head = recogniser(facts)
            if head is not None:
                return head
    wanted = "; ".join(f"{name}: {shape}" for name, _, shape in FAMILIES if family in (None, name))
    raise UnknownModelError(
        f"{facts.model}: no detector we know has {facts.describe()}. What would fit: {wanted}. "
        f"`family:` in a YAML file of the model's name decides where shapes leave it open"
    )
