"""Class names: those a model brings, or those it was surely trained on."""

from pathlib import Path

from server.detector.spec import Int32Array
from server.errors import ModelError

COCO_NAMES: tuple[str, ...] = (
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
)
# COCO numbers its 80 classes 1..90 and leaves these out; models with 91 outputs keep the gaps.
COCO_ID_COUNT = 91
COCO_UNUSED_IDS = frozenset((0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
FACE_FAMILIES = frozenset(("yunet",))


def names_and_map(
    given: tuple[str, ...] | None, class_count: int, family: str
) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Names of a model's classes and, where its numbering has gaps, the way to close them.

    Without names, 80 classes (or an unknown number) are taken for COCO's, because nearly
    every published file without names is that; 91 for COCO's numbering with gaps. The
    second value maps the model's class to ours, -1 for none; None when they are the same.
    """
    if given is not None:
        if class_count and len(given) != class_count:
            raise ModelError(f"{len(given)} class names are given, the model has {class_count}")
        return given, None
    if family in FACE_FAMILIES or (family == "ssd" and class_count == 1):
        return ("face",), None
    if class_count in (0, len(COCO_NAMES)):
        return COCO_NAMES, None
    if class_count == COCO_ID_COUNT:
        used = [number for number in range(COCO_ID_COUNT) if number not in COCO_UNUSED_IDS]
        ours = {number: index for index, number in enumerate(used)}
        return COCO_NAMES, tuple(ours.get(number, -1) for number in range(COCO_ID_COUNT))
    return tuple(f"class{index}" for index in range(class_count)), None


def read_labels(path: Path) -> tuple[str, ...]:
    """One name a line; empty lines at the end do not count."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ModelError(f"labels: {path} cannot be read as text: {reason}") from error
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if not names or not all(names):
        raise ModelError(f"labels: {path} has no names or an empty line between them")
    return names


def parse_names(value: object) -> tuple[str, ...] | None:
    """Names from a list or from a mapping of class index to name; None when it is neither."""
    if isinstance(value, list | tuple):
        return tuple(str(name) for name in value) or None
    if isinstance(value, dict):
        try:
            by_index = {int(index): str(name) for index, name in value.items()}
        except (TypeError, ValueError):
            return None
        if by_index and min(by_index) >= 0 and max(by_index) < 100_000:
            return tuple(by_index.get(i, f"class{i}") for i in range(max(by_index) + 1))
    return None


def apply_map(class_id: Int32Array, class_map: Int32Array) -> Int32Array:
    """The model's classes as ours; what the map does not know becomes -1."""
    known = (class_id >= 0) & (class_id < len(class_map))
    mapped: Int32Array = class_map[class_id.clip(0, len(class_map) - 1)]
    mapped[~known] = -1
    return mapped
