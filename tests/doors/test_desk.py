"""Who waits for what at the desk, and that nothing is kept."""

import asyncio
import gc

import pytest

from server.call_options import CallOptions
from server.desk import TURNS, Desk, PixelBudget, PixelRate
from server.errors import MalformedError, UnavailableError
from server.frame import Frame
from server.inference import InferenceWorker
from server.settings import ImageSettings, SchedulingSettings
from tests.doors.files import jpeg
from tests.fakes import FakeDetector, decoded_frame
from tests.serving import DEADLINE_S, until

pytestmark = pytest.mark.unit


async def test_budget_serves_in_order_and_lets_nobody_pass() -> None:
    budget = PixelBudget(100)
    served: list[str] = []

    async def take(name: str, pixels: int) -> None:
        await budget.take(pixels)
        served.append(name)

    await take("first", 80)
    large, small = (asyncio.create_task(take(*who)) for who in (("large", 90), ("small", 10)))
    await until(lambda: len(budget._queue) == 2)
    assert served == ["first"]
    budget.give_back(80)
    await asyncio.wait([large, small])
    assert served == ["first", "large", "small"]
    assert budget.taken == 100


async def test_who_gives_up_waiting_leaves_the_budget_as_it_was() -> None:
    budget = PixelBudget(100)
    await budget.take(100)
    waiting = [asyncio.create_task(budget.take(60)) for _ in range(3)]
    await until(lambda: len(budget._queue) == 3)
    waiting[0].cancel()
    await asyncio.wait([waiting[0]])
    budget.give_back(100)
    # Served and given up in the same moment.
    waiting[1].cancel()
    await asyncio.wait(waiting[:2])
    await asyncio.wait([waiting[2]])
    assert budget.taken == 60
    budget.give_back(60)
    assert budget.taken == 0


async def test_room_that_comes_just_after_giving_up_goes_to_the_next() -> None:
    budget = PixelBudget(100)
    await budget.take(100)
    gone, next_one = (asyncio.create_task(budget.take(60)) for _ in range(2))
    await until(lambda: len(budget._queue) == 2)
    gone.cancel()
    budget.give_back(100)
    await asyncio.wait([gone, next_one])
    assert gone.cancelled()
    assert next_one.exception() is None
    assert budget.taken == 60


def test_pixel_rate_is_that_of_the_last_two_seconds() -> None:
    rate = PixelRate()
    second = 1_000_000_000
    for at_s in range(5):
        rate.add(at_s * second, 100)
    assert rate.per_second(4 * second) == 100
    assert rate.per_second(60 * second) == 0


async def test_many_single_requests_take_no_more_turns_than_a_few_cameras() -> None:
    detector = FakeDetector()
    detector.go_on.clear()
    worker = InferenceWorker(detector)
    desk = Desk(ImageSettings(answer_timeout_s=DEADLINE_S), worker)
    worker.start()
    served: list[int] = []
    try:
        askers = [desk.asker("detect", f"request {n}", CallOptions()) for n in range(20)]
        asked = [asyncio.create_task(asker.ask(jpeg(64, 48))) for asker in askers]
        # At the detector are one that it looks at and those that wait for their turn there.
        await until(lambda: worker.statistics().mailbox.put == TURNS)
        worker.attach("camera", lambda frame, found: served.append(len(detector.batches)))
        worker.submit("camera", decoded_frame())
        detector.go_on.set()
        await until(lambda: bool(served))
        answers = await asyncio.gather(*asked)
        assert len(answers) == 20
        # The camera's turn came behind those, not behind all.
        assert served == [TURNS + 1]
        assert desk.statistics().waiting == 0
        assert desk.budget.taken == 0
    finally:
        detector.go_on.set()
        for asker in askers:
            asker.close()
        desk.close()
        assert await asyncio.to_thread(worker.stop, DEADLINE_S)


async def test_a_picture_that_waits_for_long_gets_its_answer_all_the_same() -> None:
    detector = FakeDetector()
    detector.go_on.clear()
    # For a camera's picture a thousandth of a second would be too long.
    worker = InferenceWorker(detector, SchedulingSettings(max_wait_ms=1))
    desk = Desk(ImageSettings(answer_timeout_s=DEADLINE_S), worker)
    worker.start()
    askers = [desk.asker("websocket", name, CallOptions(), in_turns=False) for name in "ab"]
    try:
        asked = [asyncio.create_task(asker.ask(jpeg(64, 48))) for asker in askers]
        await until(lambda: worker.statistics().mailbox.put == 2)
        # Time itself is what is tested; the detector is at the first one meanwhile.
        await asyncio.sleep(0.02)
        detector.go_on.set()
        async with asyncio.timeout(DEADLINE_S / 2):
            assert len(await asyncio.gather(*asked)) == 2
    finally:
        detector.go_on.set()
        for asker in askers:
            asker.close()
        desk.close()
        assert await asyncio.to_thread(worker.stop, DEADLINE_S)


def frames_held() -> int:
    return sum(isinstance(found, Frame) for found in gc.get_objects())


async def test_pictures_are_gone_with_their_answers_without_the_collector() -> None:
    worker = InferenceWorker(FakeDetector())
    desk = Desk(ImageSettings(), worker)
    worker.start()
    gc.collect()
    gc.disable()
    before = frames_held()
    try:
        open_asker = desk.asker("websocket", "socket", CallOptions(), in_turns=False)
        for number in range(10):
            await open_asker.ask(jpeg(64, 48))
            asker = desk.asker("detect", f"request {number}", CallOptions())
            await asker.ask(jpeg(64, 48))
            asker.close()
        del asker
        # The inference thread has the last one, before and after it was looked at.
        assert frames_held() - before <= 2
        open_asker.close()
    finally:
        gc.enable()
        desk.close()
        assert await asyncio.to_thread(worker.stop, DEADLINE_S)


async def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one() -> None:
    detector = FakeDetector()
    detector.go_on.clear()
    worker = InferenceWorker(detector)
    desk = Desk(ImageSettings(answer_timeout_s=0.4), worker)
    worker.start()
    asker = desk.asker("websocket", "socket", CallOptions(), in_turns=False)
    try:
        with pytest.raises(UnavailableError, match="answer_timeout_s"):
            await asker.ask(jpeg(64, 48))
        # The detector still has the first one when the second is asked, and is done with it then.
        second = asyncio.create_task(asker.ask(jpeg(80, 40)))
        await until(lambda: worker.statistics().mailbox.put == 2 or second.done())
        detector.go_on.set()
        answer = await second
        assert answer.detections.size_wh == (80, 40)
        with pytest.raises(MalformedError):
            await asker.ask(b"no picture")
    finally:
        detector.go_on.set()
        asker.close()
        desk.close()
        assert await asyncio.to_thread(worker.stop, DEADLINE_S)
