"""Fetches well-known models: pinned, checked, resumable."""
