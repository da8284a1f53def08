"""Accuracy and latency of detectors on labelled pictures, precision beside precision."""
