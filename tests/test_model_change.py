"""A change of model that takes longer than its caller waits, and what is loaded anew afterwards."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from server.errors import UnavailableError
from server.inference import Detector
from server.model_change import ModelChanger
from server.settings import DetectorSettings
from tests.fakes import FakeDetector
from tests.serving import until

pytestmark = pytest.mark.unit


class BusyWorker:
    """Adopts a detector when told to."""

    def __init__(self) -> None:
        self.adopted: Future[None] = Future()

    def replace(self, detector: Detector) -> Future[None]:
        return self.adopted


@pytest.mark.parametrize(("comes", "then"), [(True, "next.onnx"), (False, "first.onnx")])
async def test_what_took_over_late_is_what_is_loaded_anew(
    comes: bool, then: str, tmp_path: Path
) -> None:
    for name in ("first", "next"):
        (tmp_path / f"{name}.onnx").touch()
    loaded: list[str] = []

    def load(settings: DetectorSettings) -> Detector:
        loaded.append(Path(settings.model).name)
        return FakeDetector()

    worker = BusyWorker()
    with ThreadPoolExecutor(1) as executor:
        changer = ModelChanger(
            DetectorSettings(model=str(tmp_path / "first.onnx")),
            load,
            worker,
            executor,
            (tmp_path,),
            adoption_timeout_s=0.01,
        )
        with pytest.raises(UnavailableError, match="let go"):
            await changer.change(["next"])
    if comes:
        worker.adopted.set_result(None)
    else:
        # Another handed-over detector took its place.
        worker.adopted.cancel()

    def loads_anew() -> bool:
        changer.load_current()
        return loaded[-1] == then

    await until(loads_anew)
