"""Streams whose pictures the server fetches itself: cameras, files, and the demo."""
