"""`python -m tools.check --tests`: three runs of pytest, one verdict."""

import sys
from pathlib import Path

import pytest

from tools import check

pytestmark = pytest.mark.unit

# In place of pytest: ends with the code that its category has in CODES.
STAND_IN = """
import sys
category = sys.argv[sys.argv.index("-m") + 1].split()[0].strip("(")
print(f"{category} {sys.argv[3:]}")
sys.exit(CODES.get(category, 0))
"""


@pytest.fixture
def verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
):
    """Exit code and output, by the codes that the runs of pytest end with."""

    def verdict(codes: dict[str, int], *rest: str) -> tuple[int, str]:
        script = tmp_path / "stand_in.py"
        script.write_text(STAND_IN.replace("CODES", repr(codes)))
        monkeypatch.setattr(check, "PYTEST", (sys.executable, str(script)))
        monkeypatch.setattr(check, "steps", lambda: iter(()))
        monkeypatch.setattr(sys, "argv", ["check", "--tests", "--", *rest])
        code = check.main()
        sys.stdout.flush()
        return code, capfdbinary.readouterr().out.decode()

    return verdict


def test_tests_of_every_category_run_with_the_arguments_and_loopback_is_last(verdict) -> None:
    code, said = verdict({}, "-k", "mailbox")
    assert code == 0
    categories = [line.split()[0] for line in said.splitlines()]
    assert categories == ["browser", "unit", "loopback"]
    assert said.count("'-k', 'mailbox'") == 3


@pytest.mark.parametrize(
    ("category", "named"),
    [("unit", "unit and service"), ("loopback", "loopback"), ("browser", "browser")],
)
def test_a_failure_in_any_category_is_named(verdict, category: str, named: str) -> None:
    code, said = verdict({category: 1})
    assert code == 1
    assert said.splitlines()[-1] == f"failed: {named} tests"


def test_a_choice_that_some_category_has_nothing_of_passes_and_an_empty_one_does_not(
    verdict,
) -> None:
    assert verdict({"browser": 5, "loopback": 5})[0] == 0
    code, said = verdict({"unit": 5, "browser": 5, "loopback": 5})
    assert code == 1
    assert "no such tests" in said


def test_a_choice_of_categories_is_one_run(verdict) -> None:
    code, said = verdict({"long": 1}, "-m", "long")
    assert code == 1
    assert len(said.splitlines()) == 2
