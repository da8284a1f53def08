"""Media over WebRTC; `README.md` here says what differs from aiortc, and why."""
