"""OpenVINO by its own C interface, out of the libraries that onnxruntime's package brings.

onnxruntime keeps the interpreter to itself while its OpenVINO provider compiles a model: for 200 ms
no packet is handled, each time that a model or a shape of it is loaded. It is the same library
here, with the same answers; what it does it does while other threads run. Names, types and
conventions are those of `openvino/c/openvino.h`.
"""

import ctypes
import json
import logging
import os
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from server.detector.providers import Way
from server.detector.spec import AnyArray

logger = logging.getLogger(__name__)

# Types have other numbers in other releases: there onnxruntime's own provider does the work.
FILES = "libopenvino_c.so.2025.4.*"
DEVICE = b"CPU"
NUMPY_TYPES: Mapping[int, type[np.generic]] = {
    3: np.float16,
    4: np.float32,
    9: np.int32,
    10: np.int64,
    16: np.uint8,
}
"""Of `ov_element_type_e`, those that pictures and boxes come in."""
ELEMENT_TYPES = {numpy_type: element for element, numpy_type in NUMPY_TYPES.items()}


class _Shape(ctypes.Structure):
    _fields_ = (("rank", c_int64), ("dims", POINTER(c_int64)))


class _Dimension(ctypes.Structure):
    _fields_ = (("min", c_int64), ("max", c_int64))


class _PartialShape(ctypes.Structure):
    _fields_ = (("rank", _Dimension), ("dims", POINTER(_Dimension)))


class _Library:
    """The functions, each of which raises RuntimeError with OpenVINO's own words, and the core
    that all models share."""

    def __init__(self, path: Path) -> None:
        self._functions: Any = ctypes.CDLL(str(path))
        self._functions.ov_get_last_err_msg.restype = c_char_p
        self._functions.ov_model_is_dynamic.restype = c_bool
        self.core = c_void_p()
        self.call("ov_core_create", byref(self.core))

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._functions, name)(*arguments)
        if status != 0:
            said = self._functions.ov_get_last_err_msg() or b""
            raise RuntimeError(said.decode("utf-8", "replace") or f"{name} failed ({status})")

    def is_dynamic(self, model: c_void_p) -> bool:
        return bool(self._functions.ov_model_is_dynamic(model))

    def free(self, what: str, pointer: Any) -> None:
        getattr(self._functions, f"ov_{what}_free")(pointer)


@cache
def library() -> _Library | None:
    """None where this onnxruntime brings none that we know, or one that cannot be loaded."""
    for file in (Path(ort.__file__).parent / "capi").glob(FILES):
        try:
            return _Library(file)
        except (OSError, AttributeError, RuntimeError) as error:
            logger.info("%s cannot be used: %s", file.name, error)
    return None


class OpenVinoSession:
    """A compiled model and its one request; `run` as that of an onnxruntime session.

    Made on any thread, used by one at a time. RuntimeError when OpenVINO cannot take the model.
    """

    def __init__(
        self,
        openvino: _Library,
        way: Way,
        input_shapes: Mapping[str, Sequence[int]],
        output_names: Sequence[str],
    ) -> None:
        """`input_shapes` close what the file leaves open; -1 leaves it so."""
        self._openvino = openvino
        self._compiled, self._request = c_void_p(), c_void_p()
        call, model = openvino.call, c_void_p()
        call("ov_core_read_model", openvino.core, os.fsencode(way.path), None, byref(model))
        try:
            if openvino.is_dynamic(model):
                _reshape(openvino, model, input_shapes)
            options = json.loads(way.options["load_config"])["CPU"]
            texts = [c_char_p(text.encode()) for option in options.items() for text in option]
            compiled, count = byref(self._compiled), c_size_t(len(texts))
            call("ov_core_compile_model", openvino.core, model, DEVICE, count, compiled, *texts)
        finally:
            openvino.free("model", model)
        call("ov_compiled_model_create_infer_request", self._compiled, byref(self._request))
        self.input_types = {name: self._type("input", name) for name in input_shapes}
        for name in output_names:
            self._type("output", name)

    def __del__(self) -> None:
        if self._request:
            self._openvino.free("infer_request", self._request)
        if self._compiled:
            self._openvino.free("compiled_model", self._compiled)

    def run(
        self, output_names: Sequence[str], feeds: Mapping[str, AnyArray], run_options: Any = None
    ) -> list[AnyArray]:
        """Copies of the outputs in the order of their names. `run_options` mean nothing here."""
        call, tensors = self._openvino.call, []
        # In one piece each, and kept until the run is over: the tensors lie over their memory.
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        try:
            for name, array in arrays.items():
                tensors.append(self._over(array))
                call("ov_infer_request_set_tensor", self._request, name.encode(), tensors[-1])
            call("ov_infer_request_infer", self._request)
        finally:
            for tensor in tensors:
                self._openvino.free("tensor", tensor)
        return [self._get(name) for name in output_names]

    def _over(self, array: AnyArray) -> c_void_p:
        """A tensor over the array's memory, to be freed; the array outlives it."""
        tensor = c_void_p()
        shape = _Shape(array.ndim, (c_int64 * array.ndim)(*array.shape))
        element = ELEMENT_TYPES[array.dtype.type]
        data = c_void_p(array.ctypes.data)
        self._openvino.call("ov_tensor_create_from_host_ptr", element, shape, data, byref(tensor))
        return tensor

    def _get(self, name: str) -> AnyArray:
        openvino, tensor = self._openvino, c_void_p()
        shape, element, data = _Shape(), c_int(), c_void_p()
        openvino.call("ov_infer_request_get_tensor", self._request, name.encode(), byref(tensor))
        try:
            openvino.call("ov_tensor_get_element_type", tensor, byref(element))
            openvino.call("ov_tensor_data", tensor, byref(data))
            openvino.call("ov_tensor_get_shape", tensor, byref(shape))
            sides = shape.dims[: shape.rank]
            openvino.free("shape", byref(shape))
            array = np.empty(sides, NUMPY_TYPES[element.value])
            ctypes.memmove(array.ctypes.data, data, array.nbytes)
        finally:
            openvino.free("tensor", tensor)
        return array

    def _type(self, side: str, name: str) -> type[np.generic]:
        """Of an input or output; RuntimeError for one we have no use for."""
        port, element = c_void_p(), c_int()
        by_name = f"ov_compiled_model_{side}_by_name"
        self._openvino.call(by_name, self._compiled, name.encode(), byref(port))
        try:
            self._openvino.call("ov_port_get_element_type", port, byref(element))
        finally:
            self._openvino.free("output_const_port", port)
        if element.value not in NUMPY_TYPES:
            raise RuntimeError(f"{name} is of type {element.value}")
        return NUMPY_TYPES[element.value]


def _reshape(
    openvino: _Library, model: c_void_p, input_shapes: Mapping[str, Sequence[int]]
) -> None:
    count = len(input_shapes)
    names = (c_char_p * count)(*(name.encode() for name in input_shapes))
    shapes = [_partial(shape) for shape in input_shapes.values()]
    openvino.call(
        "ov_model_reshape", model, names, (_PartialShape * count)(*shapes), c_size_t(count)
    )


def _partial(sides: Sequence[int]) -> _PartialShape:
    dims = [_Dimension(*((side, side) if side >= 0 else (0, -1))) for side in sides]
    rank = len(dims)
    return _PartialShape(_Dimension(rank, rank), (_Dimension * rank)(*dims))
