"""Makes the half-precision file of an ONNX detector, and proves that it answers the same."""
