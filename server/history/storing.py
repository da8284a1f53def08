"""Which database there is to be: decided once at start, and the only place that imports it."""

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.errors import SettingsError
from server.settings import Settings
from server.state_files import state_folder

if TYPE_CHECKING:
    from server.history.store.store import Store

logger = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"
FILE = "events.db"
WANTED = "`make environment EXTRAS=store` brings it"


@dataclass(frozen=True, slots=True)
class StoreChoice:
    """`make` is None where nothing is stored. `eager`: it is opened at start and not with the
    first event."""

    make: "Callable[[], Store] | None"
    eager: bool


def choose_store(settings: Settings) -> StoreChoice:
    """By the setting `store`. A URL that cannot be meant ends the start; `auto` never does."""
    wish = settings.store.store.strip()
    if wish == OFF:
        return StoreChoice(None, False)
    # It tells of its plug-ins when imported, and of every step.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        from server.history.store.database import parse_url
        from server.history.store.store import Store
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if wish != AUTO:
            raise SettingsError(f"store: {missing} is not installed: {WANTED}") from None
        logger.info("Events are told and not stored: %s is not installed: %s", missing, WANTED)
        return StoreChoice(None, False)
    eager = True
    if wish == AUTO:
        file = state_folder(settings.auth) / FILE
        eager = file.exists()
        url = parse_url(f"sqlite:///{file.absolute()}")
    else:
        url = parse_url(wish)
    node = f"{socket.gethostname()}:{settings.server.port}"
    return StoreChoice(lambda: Store(url, node), eager)
