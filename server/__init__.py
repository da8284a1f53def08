"""Sightline: a low-latency WebRTC server that puts a detector into live video."""

__version__ = "0.1.0"
