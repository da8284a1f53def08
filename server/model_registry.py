"""Well-known models: what they are called, where they come from, on which terms.

Pure data and lookup, no network: `tools.fetch_model` downloads by it and the server resolves
`--model NAME` by it. Addresses are pinned to a release or a commit, because a branch moves. A
SHA-256 is given only where it is on public record for exactly that address or was computed from
the file; an empty one is pinned by the tool when the file is first fetched.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from server.errors import ModelError

DEFAULT_CACHE_DIR = Path(__file__).resolve().parents[1] / "models" / "cache"

_YOLOX = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0"
_ULTRALYTICS = "https://github.com/ultralytics/assets/releases/download/v8.4.0"
_HUGGING_FACE = "https://huggingface.co/onnx-community"
_OPENCV_ZOO = "https://media.githubusercontent.com/media/opencv/opencv_zoo"
_ULTRAFACE = (
    "https://raw.githubusercontent.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB/"
    "0f9ca4a9fc80170fd505168fd1132b837141f7df/models/onnx"
)
_NANODET = "https://github.com/RangiLyu/nanodet/releases/download/v1.0.0-alpha-1"
_AGPL_URL = "https://github.com/ultralytics/ultralytics/blob/main/LICENSE"
_YOLOX_LICENCE_URL = "https://github.com/Megvii-BaseDetection/YOLOX/blob/main/LICENSE"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One well-known model file."""

    name: str
    file_name: str
    url: str
    sha256: str
    """Lower-case hex; empty when nobody has recorded it for this address."""
    size_bytes: int
    """Exact where known, 0 where not."""
    licence: str
    """SPDX identifier of the weights."""
    licence_url: str
    family: str
    input_text: str
    finds: str

    @property
    def needs_consent(self) -> bool:
        """Terms that reach further than naming the authors: the user confirms them once."""
        return "GPL" in self.licence


REGISTRY: tuple[ModelEntry, ...] = (
    ModelEntry(
        "yolox-nano",
        "yolox_nano.onnx",
        f"{_YOLOX}/yolox_nano.onnx",
        "c789161ed43c8269fcd4e67c67eeeb4e80c622da2eb296a20bc6007bd18a0b7d",
        3_659_407,
        "Apache-2.0",
        _YOLOX_LICENCE_URL,
        "YOLOX",
        "416x416",
        "80 COCO classes",
    ),
    ModelEntry(
        "yolox-tiny",
        "yolox_tiny.onnx",
        f"{_YOLOX}/yolox_tiny.onnx",
        "427cc366d34e27ff7a03e2899b5e3671425c262ea2291f88bb942bc1cc70b0f7",
        20_219_662,
        "Apache-2.0",
        _YOLOX_LICENCE_URL,
        "YOLOX",
        "416x416",
        "80 COCO classes",
    ),
    ModelEntry(
        "yolox-s",
        "yolox_s.onnx",
        f"{_YOLOX}/yolox_s.onnx",
        "c5c2d13e59ae883e6af3b45daea64af4833a4951c92d116ec270d9ddbe998063",
        35_858_002,
        "Apache-2.0",
        _YOLOX_LICENCE_URL,
        "YOLOX",
        "640x640",
        "80 COCO classes",
    ),
    ModelEntry(
        "yolo26n",
        "yolo26n.onnx",
        f"{_ULTRALYTICS}/yolo26n.onnx",
        "2e947b787d9e787b93a16772a5f55b1d4d8c4d86f53146149c5d6a642442d6f7",
        9_941_957,
        "AGPL-3.0",
        _AGPL_URL,
        "YOLO26, end to end",
        "640x640",
        "80 COCO classes",
    ),
    ModelEntry(
        "yolo26s",
        "yolo26s.onnx",
        f"{_ULTRALYTICS}/yolo26s.onnx",
        "d26b65c432111eb95798cd2320603d4d75627605dbec6c6b7f98c499a80e7321",
        38_291_130,
        "AGPL-3.0",
        _AGPL_URL,
        "YOLO26, end to end",
        "640x640",
        "80 COCO classes",
    ),
    ModelEntry(
        "yolo11n",
        "yolo11n.onnx",
        f"{_ULTRALYTICS}/yolo11n.onnx",
        "634279b40c07c6391472c51ad45b81ebc48706a9a1fe72dd3396322acd0c053b",
        0,
        "AGPL-3.0",
        _AGPL_URL,
        "YOLOv8 and 11",
        "any",
        "80 COCO classes",
    ),
    ModelEntry(
        "yolo11s",
        "yolo11s.onnx",
        f"{_ULTRALYTICS}/yolo11s.onnx",
        "21d6650c5097610c92c76ce5e4b717976059169eaea4962035b90c6a92c07a8f",
        0,
        "AGPL-3.0",
        _AGPL_URL,
        "YOLOv8 and 11",
        "640x640",
        "80 COCO classes",
    ),
    ModelEntry(
        "yolov8n",
        "yolov8n.onnx",
        f"{_ULTRALYTICS}/yolov8n.onnx",
        "b2bc52f40e8e1c532427d5bde3575a5d5b571b739fab2c6df443733ed1589cbd",
        0,
        "AGPL-3.0",
        _AGPL_URL,
        "YOLOv8 and 11",
        "640x640",
        "80 COCO classes",
    ),
    ModelEntry(
        "rtdetr-v2-r18",
        "rtdetr_v2_r18vd.onnx",
        f"{_HUGGING_FACE}/rtdetr_v2_r18vd-ONNX/resolve/"
        "936f90b6a476c6da4dfe053fc521af55285976ba/onnx/model.onnx",
        "583a236ac21c95a7fd94f284fc21485e42355bfef82c27011ba78fbc09ee87e2",
        81_057_510,
        "Apache-2.0",
        "https://huggingface.co/PekingU/rtdetr_v2_r18vd",
        "DETR",
        "640x640",
        "80 COCO classes",
    ),
    ModelEntry(
        "dfine-n",
        "dfine_n_coco.onnx",
        f"{_HUGGING_FACE}/dfine_n_coco-ONNX/resolve/"
        "380d2839c327efaf65dd0fe0c2c10ab7fadd5473/onnx/model.onnx",
        "0f684f409618ee8a822410e754a29caa817d1aa16283ce89cad936d0a48e2f35",
        15_258_358,
        "Apache-2.0",
        "https://github.com/Peterande/D-FINE/blob/master/LICENSE",
        "DETR",
        "640x640",
        "80 COCO classes",
    ),
    ModelEntry(
        "dfine-s",
        "dfine_s_coco.onnx",
        f"{_HUGGING_FACE}/dfine_s_coco-ONNX/resolve/"
        "a3cf03147a9b86c78475139115c8ac142577352d/onnx/model.onnx",
        "cd8a49a945feda6d28c6304ae8ae85c2759ba1d78a5a83a22c5ce8db82ef7238",
        41_535_197,
        "Apache-2.0",
        "https://github.com/Peterande/D-FINE/blob/master/LICENSE",
        "DETR",
        "640x640",
        "80 COCO classes",
    ),
    ModelEntry(
        "rfdetr-nano",
        "rfdetr_nano.onnx",
        f"{_HUGGING_FACE}/rfdetr_nano-ONNX/resolve/"
        "eae21cee0687a91bcf9fa071605c48d7705d2d91/onnx/model.onnx",
        "9cbac6b11ce34a03034e4d5a24cfac5f18632fd6761d1311dd640232088d7fee",
        108_074_865,
        "Apache-2.0",
        "https://github.com/roboflow/rf-detr/blob/main/LICENSE",
        "DETR",
        "384x384",
        "91 COCO ids",
    ),
    ModelEntry(
        "rfdetr-small",
        "rfdetr_small.onnx",
        f"{_HUGGING_FACE}/rfdetr_small-ONNX/resolve/"
        "63463b68b200177d1fea7015f11f3cebb0ba4eeb/onnx/model.onnx",
        "121cc1476a7b69d865ca4bdc2bca59a3239020d227e4c3f35a811bef81aeb7f1",
        114_680_416,
        "Apache-2.0",
        "https://github.com/roboflow/rf-detr/blob/main/LICENSE",
        "DETR",
        "512x512",
        "91 COCO ids",
    ),
    ModelEntry(
        "nanodet-m",
        "object_detection_nanodet_2022nov.onnx",
        f"{_OPENCV_ZOO}/f88e9b2bafd21f1cad242fb5af6d78f2bcba16a3/models/object_detection_nanodet/"
        "object_detection_nanodet_2022nov.onnx",
        "4b82da9944b88577175ee23a459dce2e26e6e4be573def65b1055dc2d9720186",
        3_800_954,
        "Apache-2.0",
        "https://github.com/opencv/opencv_zoo/blob/main/models/object_detection_nanodet/LICENSE",
        "NanoDet",
        "416x416",
        "80 COCO classes",
    ),
    ModelEntry(
        "nanodet-plus-320",
        "nanodet-plus-m_320.onnx",
        f"{_NANODET}/nanodet-plus-m_320.onnx",
        "4f12723cce3d48e47ca92cb925ba74d97a965c069208edca660bbb9f7ce2c610",
        4_793_615,
        "Apache-2.0",
        "https://github.com/RangiLyu/nanodet/blob/main/LICENSE",
        "NanoDet",
        "320x320",
        "80 COCO classes",
    ),
    ModelEntry(
        "nanodet-plus-416",
        "nanodet-plus-m_416.onnx",
        f"{_NANODET}/nanodet-plus-m_416.onnx",
        "59d2f166088889c902f523bf08079391993491324f0d84847e3c4016a8f7cc3d",
        0,
        "Apache-2.0",
        "https://github.com/RangiLyu/nanodet/blob/main/LICENSE",
        "NanoDet",
        "416x416",
        "80 COCO classes",
    ),
    ModelEntry(
        "yunet",
        "face_detection_yunet_2026may.onnx",
        f"{_OPENCV_ZOO}/47534e27c9851bb1128ccc0102f1145e27f23f98/models/face_detection_yunet/"
        "face_detection_yunet_2026may.onnx",
        "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0",
        229_738,
        "MIT",
        "https://github.com/opencv/opencv_zoo/blob/main/models/face_detection_yunet/LICENSE",
        "YuNet",
        "any",
        "faces with five landmarks",
    ),
    ModelEntry(
        "yunet-2023",
        "face_detection_yunet_2023mar.onnx",
        f"{_OPENCV_ZOO}/f88e9b2bafd21f1cad242fb5af6d78f2bcba16a3/models/face_detection_yunet/"
        "face_detection_yunet_2023mar.onnx",
        "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        232_589,
        "MIT",
        "https://github.com/opencv/opencv_zoo/blob/main/models/face_detection_yunet/LICENSE",
        "YuNet",
        "640x640",
        "faces with five landmarks",
    ),
    ModelEntry(
        "ultraface-320",
        "version-RFB-320.onnx",
        f"{_ULTRAFACE}/version-RFB-320.onnx",
        "34cd7e60aeff28744c657de7a3dc64e872d506741de66987f3426f2b79f88017",
        1_270_727,
        "MIT",
        "https://github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB/blob/master/LICENSE",
        "SSD, ultra-light face",
        "320x240",
        "faces",
    ),
    ModelEntry(
        "ultraface-slim-320",
        "version-slim-320.onnx",
        f"{_ULTRAFACE}/version-slim-320.onnx",
        "e9adbd0f920ddcce9368434c4d34d72520dc0c19b526fd44b4ef49bde2c3b1a8",
        0,
        "MIT",
        "https://github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB/blob/master/LICENSE",
        "SSD, ultra-light face",
        "320x240",
        "faces",
    ),
)


def _spelling(name: str) -> str:
    """Names compare without case, dashes, underscores and dots."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


_BY_SPELLING = {_spelling(entry.name): entry for entry in REGISTRY} | {
    _spelling(entry.file_name.removesuffix(".onnx")): entry for entry in REGISTRY
}


def find_entry(name: str) -> ModelEntry | None:
    """The entry called `name`, spelled with or without case, dashes and underscores."""
    return _BY_SPELLING.get(_spelling(name))


def similar_names(name: str) -> tuple[str, ...]:
    """Registry names that somebody who wrote `name` may have meant, best first."""
    by_spelling = {_spelling(entry.name): entry.name for entry in REGISTRY}
    close = difflib.get_close_matches(_spelling(name), by_spelling, n=3, cutoff=0.5)
    return tuple(by_spelling[spelling] for spelling in close)


def resolve_model(model: str, cache_dir: str | Path = "") -> Path:
    """The file that `--model NAME|PATH` means; ModelError says what to do when there is none.

    A file of that path wins over a registry name. Looks at the disk, never at the network.
    """
    path = Path(model).expanduser()
    if path.suffix.lower() in (".pt", ".pth"):
        raise ModelError(f"{model}: {PYTORCH_ADVICE}")
    if path.is_file():
        return path
    if path.is_dir():
        raise ModelError(f"{model}: a folder; name the ONNX file in it")
    entry = find_entry(model)
    if entry is not None:
        cached = Path(cache_dir or DEFAULT_CACHE_DIR).expanduser() / entry.file_name
        if cached.is_file():
            return cached
        raise ModelError(
            f"{model}: known, but not fetched yet: run `python -m tools.fetch_model {entry.name}`"
        )
    if path.suffix or len(path.parts) > 1:
        raise ModelError(f"{model}: no such file")
    meant = similar_names(model)
    hint = f"did you mean {' or '.join(meant)}? " if meant else ""
    raise ModelError(
        f"{model}: neither a file nor a known model; {hint}"
        "`python -m tools.fetch_model --list` lists the known ones"
    )


PYTORCH_ADVICE = (
    "PyTorch weights hold no graph that onnxruntime could run, and turning them into one takes "
    "the package that made them (for YOLO: `yolo export model=FILE format=onnx` where ultralytics "
    "is installed); many are in the registry as ONNX already: `python -m tools.fetch_model --list`"
)


NO_MODEL = "none"
# Ours, part of the repository: what runs when nobody names a model.
DEFAULT_MODEL = DEFAULT_CACHE_DIR.parent / "sightline-nano.onnx"


def chosen_model(model: str) -> str:
    """What the setting `model` means: ours when it is empty, nothing when it says `none`."""
    if model == NO_MODEL:
        return ""
    return model or (str(DEFAULT_MODEL) if DEFAULT_MODEL.is_file() else "")
