"""Which class of a data set a class of a model is, by name."""

from collections.abc import Sequence

# Pascal VOC and older Darknet lists write these COCO names differently.
_SAME = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
    "tv monitor": "tv",
    "human": "person",
    "pedestrian": "person",
}


def _plain(name: str) -> str:
    text = " ".join(name.lower().replace("_", " ").replace("-", " ").split())
    return _SAME.get(text, text)


def class_map(model_names: Sequence[str], data_names: Sequence[str]) -> tuple[int, ...]:
    """By class id of the model: the class id in the data set, or -1 when it has no such class.

    A model whose names say nothing is taken to have the classes of the data, if it has as many.
    """
    index_of = {_plain(name): index for index, name in enumerate(data_names)}
    by_name = tuple(index_of.get(_plain(name), -1) for name in model_names)
    if len(model_names) == len(data_names) and all(index < 0 for index in by_name):
        return tuple(range(len(data_names)))
    return by_name
