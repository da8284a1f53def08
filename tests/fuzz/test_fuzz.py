"""Every target with what hypothesis makes up, and with good inputs that were damaged."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.unit

EXAMPLES = {"stun": 20, "configuration": 20}
each_target = pytest.mark.parametrize("target", [*TARGETS])


def damaged(seed: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut, doubled or put in."""
    data = bytearray(seed)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                data[at:at] = chance.randbytes(chance.randint(1, 8))
            case 1:
                del data[at : at + chance.randint(1, 20)]
            case 2:
                data[at:at] = data[max(0, at - 30) : at]
            case 3:
                data[at:at] = chance.choice((b"\x00", b"\r\n", b"-1", b"9" * 30, b"\xff", b"{[("))
            case _:
                if at < len(data):
                    data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


def test_every_target_has_seeds_and_takes_them() -> None:
    assert TARGETS.keys() == SEEDS.keys()
    for name, seeds in SEEDS.items():
        for seed in seeds:
            TARGETS[name](seed)


@each_target
def test_damaged_good_input_is_taken_or_refused(target: str) -> None:
    for number in range(3 * EXAMPLES.get(target, 60)):
        chance = random.Random(f"{target}/{number}")
        TARGETS[target](damaged(chance.choice(SEEDS[target]), chance))


@each_target
def test_any_bytes_are_taken_or_refused(target: str) -> None:
    @settings(max_examples=EXAMPLES.get(target, 60), suppress_health_check=[HealthCheck.too_slow])
    @given(st.binary(max_size=2000) | st.text(max_size=500).map(str.encode))
    def fed(data: bytes) -> None:
        TARGETS[target](data)

    fed()
