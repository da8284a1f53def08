"""Header extensions that go out: read back with aiortc's parser, alone and over a real call."""

import pytest
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters
from aiortc.rtp import unpack_header_extensions

from server.rtc.extensions import (
    ABS_CAPTURE_TIME,
    ABS_SEND_TIME,
    MID,
    PLAYOUT_DELAY,
    HeaderBlock,
    also_common,
)
from tests.fakes import FakeDetector
from tests.serving import Caller, Serving, changed, serving

pytestmark = pytest.mark.loopback

NS_PER_S = 1_000_000_000
ALL = {MID: 1, PLAYOUT_DELAY: 5, ABS_CAPTURE_TIME: 9, ABS_SEND_TIME: 3}


def agreed(ids: dict[str, int]) -> list[RTCRtpHeaderExtensionParameters]:
    return [RTCRtpHeaderExtensionParameters(id=number, uri=uri) for uri, number in ids.items()]


def read(block: bytes) -> dict[int, bytes]:
    profile = int.from_bytes(block[:2], "big")
    assert len(block) == 4 + 4 * int.from_bytes(block[2:4], "big")
    return dict(unpack_header_extensions(profile, block[4:]))


def test_block_says_when_the_picture_was_taken_and_sent() -> None:
    now_ntp = 0xE9_00_00_00 << 32
    values = read(HeaderBlock(agreed(ALL), "0").at(now_ntp, NS_PER_S // 2))
    assert values[1] == b"0"
    assert values[5] == bytes(3)
    assert int.from_bytes(values[9][:8], "big") == now_ntp - (1 << 31)
    assert values[9][8:] == bytes(8)
    assert int.from_bytes(values[3], "big") == now_ntp >> 14 & 0xFFFFFF


@pytest.mark.parametrize("uri", ALL)
def test_block_holds_what_was_agreed_and_nothing_else(uri: str) -> None:
    assert list(read(HeaderBlock(agreed({uri: 7}), "0").at(1 << 40, 0))) == [7]


@pytest.mark.parametrize("ids", [{}, {ABS_SEND_TIME: 0}, {ABS_SEND_TIME: 15}, {"urn:other": 2}])
def test_nothing_that_can_be_sent_is_an_empty_block(ids: dict[str, int]) -> None:
    block = HeaderBlock(agreed(ids), "0")
    assert (len(block), block.at(1 << 40, 0)) == (0, b"")


def test_mid_that_does_not_fit_is_left_out() -> None:
    assert HeaderBlock(agreed({MID: 1}), "x" * 17).at(0, 0) == b""


def test_only_our_extensions_are_agreed_to_and_only_with_ids_that_fit() -> None:
    offered = agreed({ABS_CAPTURE_TIME: 9, PLAYOUT_DELAY: 16, MID: 1})
    assert [(item.uri, item.id) for item in also_common(offered)] == [(ABS_CAPTURE_TIME, 9)]


class OfferingCaller(Caller):
    """Offers both extensions, as Chromium can."""

    async def call(self, serving: Serving, **options: object) -> dict[str, object]:
        body = await self.offer(**options)
        lines = f"a=extmap:13 {ABS_CAPTURE_TIME}\r\na=extmap:12 {PLAYOUT_DELAY}\r\na=rtcp-mux\r\n"
        body["sdp"] = body["sdp"].replace("a=rtcp-mux\r\n", lines)
        async with serving.http.post(f"{serving.url}/offer", json=body) as reply:
            answer: dict[str, object] = await reply.json()
            assert reply.status == 200, answer
        return answer


async def test_call_agrees_to_both_when_offered() -> None:
    async with serving(FakeDetector()) as server:
        caller = OfferingCaller()
        try:
            sdp = str((await caller.call(server))["sdp"])
        finally:
            await caller.close()
        assert f"a=extmap:13 {ABS_CAPTURE_TIME}" in sdp
        assert f"a=extmap:12 {PLAYOUT_DELAY}" in sdp


async def test_call_agrees_to_neither_when_switched_off() -> None:
    settings = changed(rtc={"rtc_disable": ("header_extensions",)})
    async with serving(FakeDetector(), settings) as server:
        caller = OfferingCaller()
        try:
            sdp = str((await caller.call(server))["sdp"])
        finally:
            await caller.close()
        assert ABS_CAPTURE_TIME not in sdp
        assert PLAYOUT_DELAY not in sdp
