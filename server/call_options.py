"""What a caller may choose for its own call, now and while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from server.errors import UnprocessableError
from server.settings import MODES

CLASSES_AT_MOST = 400


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Frozen, so that threads read one consistent set; a change makes a new one."""

    mode: str = "exact"
    confidence: float = 0.35
    classes: tuple[str, ...] | None = None
    """Names of the classes to show; None shows all."""

    def updated(self, changes: Mapping[str, object]) -> "CallOptions":
        """These options with a request's changes; refuses by key, value and range."""
        options = self
        for name, value in changes.items():
            if name == "mode":
                options = replace(options, mode=_mode(value))
            elif name == "confidence":
                options = replace(options, confidence=_confidence(value))
            elif name == "classes":
                options = replace(options, classes=_classes(value))
            else:
                raise UnprocessableError(
                    f"options.{name[:40]}: unknown; known are mode, confidence, classes"
                )
        return options

    def to_json(self) -> dict[str, object]:
        classes = None if self.classes is None else list(self.classes)
        return {"mode": self.mode, "confidence": self.confidence, "classes": classes}


def query_options(query: Mapping[str, str], confidence: float) -> CallOptions:
    """What `?confidence=0.5&classes=person,car` says; `confidence` where it says nothing."""
    changes: dict[str, object] = {}
    if "confidence" in query:
        try:
            changes["confidence"] = float(query["confidence"])
        except ValueError:
            raise UnprocessableError("confidence: not a number within 0 to 1") from None
    if "classes" in query:
        changes["classes"] = [name.strip() for name in query["classes"].split(",")]
    return replace(CallOptions(), confidence=confidence).updated(changes)


def _mode(value: object) -> str:
    if value not in MODES:
        raise UnprocessableError(f"options.mode: {value!r:.40} is not one of {', '.join(MODES)}")
    return str(value)


def _confidence(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UnprocessableError(f"options.confidence: {value!r:.40} is not within 0 to 1")
    return float(value)


def _classes(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) > CLASSES_AT_MOST
        or not all(isinstance(name, str) and 0 < len(name) <= 80 for name in value)
    ):
        raise UnprocessableError(
            f"options.classes: not null or a list of at most {CLASSES_AT_MOST} names"
        )
    return tuple(value)
