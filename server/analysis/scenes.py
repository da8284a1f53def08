"""The scenes there are, by stream, and their layouts on disk. On the loop.

A stream's layout is kept in a file of its own beside the other state, so that it is there before
its first picture and needs no database. One that cannot be read keeps its stream from starting:
it may hold masks.
"""

import asyncio
import json
import weakref
from collections.abc import Callable
from pathlib import Path

from server.analysis.scene import Happening, Scene
from server.analysis.zones import Layout, parse_layout
from server.errors import ConflictError, SettingsError, UnavailableError, UnprocessableError
from server.state_files import read_private, write_private

SCENES_AT_MOST = 1000
RETRY_S = 5


class Scenes:
    """One for an application. `on_happening` is handed to every scene."""

    def __init__(
        self,
        folder: Path,
        *,
        tracking: bool,
        on_happening: Callable[[Happening], None] | None = None,
    ) -> None:
        self._folder = folder
        self._tracking = tracking
        self._on_happening = on_happening
        self.on_masks: Callable[[str], None] = lambda stream: None
        """Hears of a stream whose masks are others now: what was kept of its picture shows what
        they cover."""
        self._scenes: dict[str, Scene] = {}
        # Those among them, or left out of them, that a source is looked at by: a change must
        # reach them.
        self._in_use: weakref.WeakValueDictionary[str, Scene] = weakref.WeakValueDictionary()
        self._writing = asyncio.Lock()

    def of(self, stream: str) -> Scene:
        """The scene of a stream that begins; its name has been checked."""
        scene = self._scenes[stream] = self._in_use[stream] = self.peek(stream)
        if len(self._scenes) > SCENES_AT_MOST:
            # Those without anything drawn can be made again.
            for name, other in list(self._scenes.items()):
                if other.layout == Layout() and name != stream:
                    del self._scenes[name]
                    break
        return scene

    def peek(self, stream: str) -> Scene:
        """The scene of a stream that may never have been; it is not kept."""
        return self._kept(stream) or Scene(stream, self._read(stream), self._on_happening)

    async def change(self, stream: str, layout: Layout) -> None:
        """Another layout, first on disk, then at work."""
        if layout.watches and not self._tracking:
            raise ConflictError("tracking: off; zones, lines and appear need it")
        async with self._writing:
            await asyncio.to_thread(self._write, stream, layout)
            scene = self._kept(stream)
            if scene is not None:
                covered = scene.layout.masks != layout.masks
                scene.change(layout)
                if covered:
                    self.on_masks(stream)

    def _kept(self, stream: str) -> Scene | None:
        return self._scenes.get(stream) or self._in_use.get(stream)

    def _file(self, stream: str) -> Path:
        return self._folder / "zones" / f"{stream}.json"

    def _write(self, stream: str, layout: Layout) -> None:
        file = self._file(stream)
        try:
            if not file.exists() and len(list(file.parent.glob("*.json"))) >= SCENES_AT_MOST:
                raise UnavailableError(f"zones: {SCENES_AT_MOST} streams have some", RETRY_S)
            if layout == Layout():
                file.unlink(missing_ok=True)
            else:
                text = json.dumps(layout.to_json(), indent=1) + "\n"
                write_private(file, text, "zones")
        except (SettingsError, OSError) as error:
            raise UnavailableError(f"zones: not written: {error}", RETRY_S) from None

    def _read(self, stream: str) -> Layout:
        file = self._file(stream)
        try:
            text = read_private(file, "zones")
            return Layout() if text is None else parse_layout(json.loads(text))
        except (SettingsError, UnprocessableError, ValueError, RecursionError) as error:
            raise UnavailableError(f"zones: {file.name} cannot be used: {error}", RETRY_S) from None
