"""Detectors from ONNX files; the only package that knows onnxruntime."""
