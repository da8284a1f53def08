"""A caller in a process of its own that misuses its session: prints `live` once pictures return,
then takes lines `KIND COUNT SEED`, sends so many packets with its own keys, prints how many left,
and `live` again when pictures still return; ends with its standard input.
`python -m tests.reliability.misuser URL`."""

import asyncio
import contextlib
import random
import re
import struct
import sys
from collections.abc import Callable, Iterator

import pylibsrtp
from aiohttp import ClientSession
from aiortc.rtp import RtpPacket, pack_rtcp_packet

from tests.serving import Caller, Serving

# So many at once, then a pause: 5,000 a second at most.
AT_ONCE, PAUSE_S = 50, 0.01
# Pictures that were on their way, or in a queue, when the last packet left prove nothing.
PICTURES_AFTER = 30


def rtp_fuzz(chance: random.Random, payload_type: int) -> Iterator[bytes]:
    """Headers and extensions that lie. Of other sources than the camera's: a number out of its
    row would end the caller's own encryption, not the server's."""
    while True:
        body = chance.randbytes(chance.randint(0, 40))
        packet = bytearray(
            RtpPacket(
                payload_type=payload_type,
                ssrc=chance.getrandbits(32),
                sequence_number=chance.getrandbits(16),
                timestamp=chance.getrandbits(32),
                payload=b"\x10\x00" + body,
            ).serialize()
        )
        match chance.randrange(4):
            case 0:  # an extension block of any length
                packet[0] |= 0x10
                profile = chance.choice((0xBEDE, 0x1000, chance.getrandbits(16)))
                words = chance.randint(0, 4)
                block = struct.pack("!HH", profile, chance.choice((words, chance.getrandbits(16))))
                packet[12:12] = block + chance.randbytes(4 * words)
            case 1:  # sources that are not there
                packet[0] |= chance.randint(1, 15)
            case 2:  # padding longer than all
                packet[0] |= 0x20
                packet += bytes([chance.getrandbits(8)])
            case _:
                packet[chance.randrange(12)] ^= 1 << chance.randrange(8)
        yield bytes(packet)


def rtcp_fuzz(chance: random.Random, ssrc: int) -> Iterator[bytes]:
    """Reports and requests about the server's picture that lie."""
    while True:
        kind, count = chance.randint(200, 207), chance.randrange(32)
        ours = struct.pack("!LL", 1, ssrc)
        body = chance.choice(
            (
                b"",
                chance.randbytes(4 * chance.randint(0, 20)),
                ours + chance.randbytes(4 * chance.randint(0, 300)),
                ours + b"REMB" + chance.randbytes(4 * chance.randint(0, 4)),
            )
        )
        packet = bytearray(pack_rtcp_packet(kind, count, body))
        if chance.random() < 0.3:
            packet[2:4] = struct.pack("!H", chance.getrandbits(16))
        yield bytes(packet)


KINDS: dict[str, Callable[[random.Random, Caller], Iterator[bytes]]] = {
    "rtp": lambda chance, caller: rtp_fuzz(chance, payload_type_of(caller)),
    "rtcp": lambda chance, caller: rtcp_fuzz(chance, ssrc_of_server(caller)),
}


def payload_type_of(caller: Caller) -> int:
    """What the server takes for the camera's picture."""
    [camera] = [one for one in caller.pc.getTransceivers() if one.kind == "video"]
    number = camera._codecs[0].payloadType
    assert number is not None
    return number


def ssrc_of_server(caller: Caller) -> int:
    found = re.search(r"a=ssrc:(\d+)", caller.pc.remoteDescription.sdp)
    assert found is not None
    return int(found[1])


async def send(caller: Caller, packets: Iterator[bytes], count: int) -> int:
    """How many left; some cannot even be encrypted."""
    transport = caller.pc.getSenders()[0].transport
    left = 0
    for number in range(count):
        with contextlib.suppress(pylibsrtp.Error):
            await transport._send_rtp(next(packets))
            left += 1
        if number % AT_ONCE == 0:
            await asyncio.sleep(PAUSE_S)
    return left


async def main(url: str) -> None:
    async with ClientSession() as http:
        caller = Caller()
        await caller.call(Serving(url, http, None, None, None, None, None))  # type: ignore[arg-type]
        # The stock receiver keeps what nobody reads.
        pictures: asyncio.Queue[int] = asyncio.Queue(1)
        reading = asyncio.create_task(read(caller, pictures))
        await pictures.get()
        print("live", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            kind, count, seed = line.split()
            packets = KINDS[kind](random.Random(int(seed)), caller)
            print(await send(caller, packets, int(count)), flush=True)
            last = await pictures.get()
            while await pictures.get() <= last + PICTURES_AFTER:
                pass
            print("live", flush=True)
        reading.cancel()
        await asyncio.wait([reading])
        await caller.close()


async def read(caller: Caller, pictures: asyncio.Queue[int]) -> None:
    """Until cancelled; the queue holds the number of the newest picture."""
    number = 0
    while True:
        await caller.picture()
        number += 1
        if pictures.full():
            pictures.get_nowait()
        pictures.put_nowait(number)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
