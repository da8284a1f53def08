"""A small site of its own that shows a Sightline stream: `python docs/embed_example/app.py --help`.

It serves one page, and hands that page short-lived tokens. The key that makes them stays here.
A real site asks who its visitor is before `/camera-token` answers. Standard library only.
"""

import argparse
import json
import re
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

FOLDER = Path(__file__).parent
FILES = {"/": "index.html", "/style.css": "style.css", "/page.js": "page.js"}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


class Site(ThreadingHTTPServer):
    """The settings that the handler needs."""

    def __init__(self, port: int, sightline: str, stream: str, key: str, life: str) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.sightline, self.stream, self.key, self.life = sightline, stream, key, life


class Handler(BaseHTTPRequestHandler):
    """Three files and a token."""

    server: Site

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/camera-token":
            self.token(parse_qs(parts.query).get("stream", [""])[0])
        elif parts.path in FILES:
            path = FOLDER / FILES[parts.path]
            text = path.read_text(encoding="utf-8")
            text = text.replace("SIGHTLINE", self.server.sightline)
            self.answer(200, TYPES[path.suffix], text.replace("STREAM", self.server.stream))
        else:
            self.answer(404, "text/plain", "no such page")

    def token(self, stream: str) -> None:
        """A token for one stream, for a short while."""
        if not self.server.key:
            self.answer(200, "application/json", '{"token": "none-is-needed"}')
            return
        body = {"scopes": ["view"], "streams": [stream], "ttl": self.server.life}
        request = urllib.request.Request(
            f"{self.server.sightline}/api/tokens",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {self.server.key}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                self.answer(200, "application/json", reply.read().decode())
        except (urllib.error.URLError, TimeoutError) as error:
            self.answer(502, "text/plain", f"no token: {error}")

    def answer(self, status: int, content_type: str, text: str) -> None:
        body = text.encode()
        sightline = self.server.sightline
        self.send_response(status)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        # All that a tile and a frame need; nothing inline.
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'self'; script-src 'self' {sightline}; connect-src 'self' {sightline}; "
            f"frame-src {sightline}; media-src 'self' blob: mediastream:; img-src 'self' blob:",
        )
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--sightline", default="http://127.0.0.1:8080", help="its origin")
    parser.add_argument("--stream", default="porch")
    parser.add_argument("--key-file", type=Path, help="file with a key that has control and view")
    parser.add_argument("--life", default="10m", help="of each token")
    arguments = parser.parse_args()
    if not re.fullmatch(r"https?://[\w.:\[\]-]+", arguments.sightline):
        parser.error("--sightline: an origin is wanted, such as https://cam.example")
    if not re.fullmatch(r"[\w-]{1,64}", arguments.stream):
        parser.error("--stream: letters, digits, _ and - are wanted")
    try:
        key = arguments.key_file.read_text().strip() if arguments.key_file else ""
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--key-file: {arguments.key_file} cannot be read: {error}")
    site = Site(arguments.port, arguments.sightline, arguments.stream, key, arguments.life)
    print(f"http://127.0.0.1:{site.server_port}/", flush=True)
    site.serve_forever()


if __name__ == "__main__":
    main()
