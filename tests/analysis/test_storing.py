"""Which database there is to be, with and without the packages for one."""

import subprocess
import sys
from pathlib import Path

import pytest

from server.errors import SettingsError
from server.history.storing import choose_store
from tests.serving import changed

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = """
import sys
sys.modules["sqlalchemy"] = None
from server.errors import SettingsError
from server.history.storing import choose_store
from tests.serving import changed
assert choose_store(changed()).make is None
try:
    choose_store(changed(store={"store": "sqlite:////tmp/x.db"}))
except SettingsError as error:
    print(error)
"""


def test_without_the_packages_auto_stores_nothing_and_a_url_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "sqlalchemy is not installed: `make environment EXTRAS=store` brings it" in done.stdout


def test_auto_is_opened_at_start_only_when_it_is_there(tmp_path: Path) -> None:
    settings = changed(auth={"state_dir": str(tmp_path)})
    choice = choose_store(settings)
    assert choice.make is not None
    assert not choice.eager
    (tmp_path / "events.db").touch()
    assert choose_store(settings).eager


def test_off_stores_nothing_and_a_wrong_url_ends_the_start() -> None:
    assert choose_store(changed(store={"store": "off"})).make is None
    with pytest.raises(SettingsError, match="not sqlite or postgresql"):
        choose_store(changed(store={"store": "mysql://x/y"}))
