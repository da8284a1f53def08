"""Another detector while calls run: load, warm and check it beside the running one, then swap.

Only models that are already on this machine and in the list of `choices` can be chosen, by
name: no caller can make the server open a path of its liking. A model that fails to load leaves
the old one running.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from server.errors import NotFoundError, UnavailableError
from server.inference import Detector
from server.model_registry import DEFAULT_CACHE_DIR, REGISTRY, find_entry
from server.settings import DetectorSettings

ADOPTION_TIMEOUT_S = 5.0
RETRY_AFTER_S = 5


class Adopts(Protocol):
    """The inference worker, as far as a change needs it."""

    def replace(self, detector: Detector) -> Future[None]: ...


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model that could run now."""

    name: str
    licence: str
    """Empty where nobody recorded it."""


class ModelChanger:
    """One change at a time; on the loop. `executor` loads, so that no other work waits for it."""

    def __init__(
        self,
        settings: DetectorSettings,
        load: Callable[[DetectorSettings], Detector],
        worker: Adopts,
        executor: Executor,
        folders: tuple[Path, ...],
        adoption_timeout_s: float = ADOPTION_TIMEOUT_S,
    ) -> None:
        self._settings = settings
        self._current = settings
        self._load = load
        self._worker = worker
        self._executor = executor
        self._folders = folders
        self._adoption_timeout_s = adoption_timeout_s
        self._changing = False

    def choices(self) -> tuple[ModelChoice, ...]:
        """What `change` accepts, by name. Looks at a few folders; quick."""
        licences = {entry.file_name: entry.licence for entry in REGISTRY}
        return tuple(
            ModelChoice(name, licences.get(path.name, ""))
            for name, path in sorted(self._files().items())
        )

    async def change(self, names: list[str]) -> None:
        """Run these models together from the next frame on."""
        files = self._files()
        for name in names:
            if name not in files:
                known = ", ".join(sorted(files)) or "none"
                entry = find_entry(name)
                hint = f"; `python -m tools.fetch_model {entry.name}` fetches it" if entry else ""
                raise NotFoundError(
                    f"model: {name[:60]!r} is not on this machine; known: {known}{hint}"
                )
        if self._changing:
            raise UnavailableError("model: another one is being loaded", RETRY_AFTER_S)
        self._changing = True
        try:
            model = "+".join(str(files[name]) for name in names)
            loop = asyncio.get_running_loop()
            wanted = replace(self._settings, model=model)
            detector = await loop.run_in_executor(self._executor, self._load, wanted)
            adopted = asyncio.wrap_future(self._worker.replace(detector))
            # Also when nobody waits for it any more: it takes over as soon as it can.
            adopted.add_done_callback(partial(self._adopted, wanted))
            done, _ = await asyncio.wait([adopted], timeout=self._adoption_timeout_s)
            if not done or adopted.cancelled():
                raise UnavailableError(
                    "model: loaded, but the running one does not let go of its frame", RETRY_AFTER_S
                )
        finally:
            self._changing = False

    def _adopted(self, settings: DetectorSettings, adopted: asyncio.Future[None]) -> None:
        if not adopted.cancelled():
            self._current = settings

    def load_current(self) -> Detector:
        """Load what runs now once more; any thread, blocks."""
        return self._load(self._current)

    def _files(self) -> dict[str, Path]:
        return {
            path.stem: path
            for folder in self._folders
            if folder.is_dir()
            for path in sorted(folder.glob("*.onnx"))
        }


def model_folders(settings: DetectorSettings) -> tuple[Path, ...]:
    """Where models to choose from lie: the cache, `models/`, and beside the model of the start."""
    cache = Path(settings.cache_dir or DEFAULT_CACHE_DIR).expanduser()
    named = [Path(part).expanduser() for part in settings.model.split("+") if part]
    beside = [path.parent for path in named if path.is_file()]
    return tuple(dict.fromkeys([cache, DEFAULT_CACHE_DIR.parent, *beside]))
