"""Datagrams that were refused, counted by kind; the log hears of each kind once."""

import logging
from collections.abc import Mapping
from types import MappingProxyType

logger = logging.getLogger(__name__)


class Rejections:
    """Counts per kind for one transport. Loop only. Kinds are constants, so it is bounded."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._counts: dict[str, int] = {}

    def count(self, kind: str, error: BaseException | None = None) -> None:
        """One datagram of this kind was dropped; an unexpected error is logged the first time."""
        before = self._counts.get(kind, 0)
        self._counts[kind] = before + 1
        if before == 0 and error is not None:
            logger.warning(
                "%s: dropped a datagram (%s); further ones of this kind are counted",
                self._owner,
                kind,
                exc_info=error,
            )
        elif before == 0:
            logger.info("%s: dropped a datagram (%s); further ones are counted", self._owner, kind)

    @property
    def counts(self) -> Mapping[str, int]:
        """A snapshot."""
        return MappingProxyType(dict(self._counts))
