"""A process that sends datagrams where nobody asked it to: `python -m tests.reliability.stranger
KIND HOST PORT PER_S SECONDS SEED`; prints how many left."""

import contextlib
import random
import socket
import struct
import sys
import time
from collections.abc import Callable

COOKIE = 0x2112A442
CLIENT_HELLO = bytes.fromhex("16feff0000000000000000002f010000230000000000000023fefd") + bytes(38)
ATTRIBUTES = (6, 8, 9, 32, 36, 37, 0x8028, 0x8029)
DIFFERENT = 1000
ALERT = bytes.fromhex("15fefd00000000000000000002022a")


def empty(chance: random.Random, number: int) -> bytes:
    return b""


def oversize(chance: random.Random, number: int) -> bytes:
    """Each first byte in turn; mostly little over the limit, now and then as large as it gets."""
    size = 65_507 if number % 500 == 0 else chance.randint(1501, 3000)
    return bytes([number % 256]) * size


def dtls(chance: random.Random, number: int) -> bytes:
    return (CLIENT_HELLO, ALERT, b"\x16" + chance.randbytes(60))[number % 3]


def stun(chance: random.Random, number: int) -> bytes:
    """Requests and answers whose attributes are cut, too long or not of this world."""
    body = b"".join(
        struct.pack(
            "!HH",
            chance.choice((*ATTRIBUTES, chance.getrandbits(16))),
            chance.choice((0, 4, 8, 20, 255, chance.getrandbits(16))),
        )
        + chance.randbytes(chance.randint(0, 24))
        for _ in range(chance.randint(0, 4))
    )
    length = len(body) if chance.random() < 0.7 else chance.getrandbits(16)
    kind = chance.choice((0x0001, 0x0101, 0x0111, 0x0011, 0x0003, chance.getrandbits(14)))
    cookie = COOKIE if chance.random() < 0.9 else chance.getrandbits(32)
    head = struct.pack("!HHI", kind, length, cookie) + chance.randbytes(12)
    return (head + body)[: chance.choice((1, 8, 20, 1500, 1500, 1500))]


def media(chance: random.Random, number: int) -> bytes:
    """Looks like SRTP and SRTCP."""
    return bytes([0x80, chance.choice((96, 97, 200, 201, 205, 206))]) + chance.randbytes(200)


KINDS: dict[str, Callable[[random.Random, int], bytes]] = {
    "empty": empty,
    "oversize": oversize,
    "dtls": dtls,
    "stun": stun,
    "media": media,
}


def main(kind: str, host: str, port: int, per_s: int, seconds: float, seed: int) -> int:
    chance, make = random.Random(seed), KINDS[kind]
    # Made beforehand and sent from a connected socket: what is left to do is one system call each.
    datagrams = [make(chance, number) for number in range(DIFFERENT)]
    number = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.connect((host, port))
        begun = time.monotonic()
        while (elapsed := time.monotonic() - begun) < seconds:
            while number < elapsed * per_s:
                # Refused is what nobody listens for.
                with contextlib.suppress(ConnectionRefusedError):
                    stranger.send(datagrams[number % DIFFERENT])
                number += 1
            time.sleep(0.002)
    return number


if __name__ == "__main__":
    kind, host, port, per_s, seconds, seed = sys.argv[1:]
    print(main(kind, host, int(port), int(per_s), float(seconds), int(seed)))
