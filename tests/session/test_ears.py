"""The live frames of several sessions, taken in together and each given back to its own."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from serve_app.audio.pcm import Audio, Samples, encode_pcm
from serve_app.session.ears import Block, Ears, resampler

LOUD, SOFT = 0.5, 0.01


class Levels:
    """Probability: how loud the frame is. Keeps what it was asked together."""

    rounds: list[int]

    def __init__(self, name: str) -> None:
        self.name = name
        self.rounds = []

    def probability(self, frame: Audio) -> float:
        raise AssertionError("live frames are not scored alone")

    @staticmethod
    def probabilities(detectors: Sequence["Levels"], frames: Audio) -> list[float]:
        assert frames.shape == (len(detectors), 512)
        for detector in detectors:
            detector.rounds.append(len(detectors))
        return [float(np.abs(frame).max()) for frame in frames]


@dataclass
class Listener:
    detector: Any
    heard: list[tuple[Samples, float]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)

    def block(self, level: float, rate: int = 24_000) -> Block:
        sound = np.full(resampler(rate).block, level, dtype=np.float32)
        return Block(
            encode_pcm(sound),
            rate,
            self.detector,
            lambda *heard: self.heard.append(heard),
            self.failures.append,
        )


def listeners(count: int) -> list[Listener]:
    return [Listener(Levels(str(n))) for n in range(count)]


async def test_frames_that_come_together_are_scored_together_and_each_goes_to_its_own() -> None:
    ears, (one, other, third) = Ears(gather_s=0.0), listeners(3)
    for listener, level in ((one, LOUD), (other, SOFT), (third, LOUD)):
        ears.hear(listener.block(level))
    await asyncio.sleep(0.01)
    for listener, level in ((one, LOUD), (other, SOFT), (third, LOUD)):
        [(samples, probability)] = listener.heard
        assert probability == pytest.approx(level, abs=1e-3)
        assert samples.dtype == np.int16
        assert samples.shape == (512,)
        assert np.abs(samples / 32768 - level).max() < 1e-3
        assert listener.detector.rounds == [3]


async def test_callers_at_different_rates_are_heard_in_one_round() -> None:
    ears, (one, other, third) = Ears(gather_s=0.0), listeners(3)
    ears.hear(one.block(LOUD, 24_000))
    ears.hear(other.block(SOFT, 8_000))
    ears.hear(third.block(LOUD, 24_000))
    await asyncio.sleep(0.01)
    assert [listener.heard[0][1] for listener in (one, other, third)] == pytest.approx(
        [LOUD, SOFT, LOUD], abs=1e-3
    )
    assert other.detector.rounds == [3]


async def test_who_has_gone_is_left_out_even_in_the_middle_of_a_round() -> None:
    ears, (one, other, third) = Ears(gather_s=0.0), listeners(3)
    gone, last = other.block(LOUD), third.block(LOUD)
    first = one.block(LOUD)
    first.on_heard = lambda samples, probability: last.cancel()
    for block in (first, gone, last):
        ears.hear(block)
    gone.cancel()
    await asyncio.sleep(0.01)
    assert not other.heard
    assert not third.heard
    assert one.detector.rounds == [2]


async def test_a_detector_that_fails_tells_all_who_wait_and_hears_the_next() -> None:
    class Fails(Levels):
        @staticmethod
        def probabilities(detectors: Sequence[Levels], frames: Audio) -> list[float]:
            raise RuntimeError("broken")

    ears, one, other = Ears(gather_s=0.0), Listener(Fails("one")), Listener(Fails("other"))
    ears.hear(one.block(LOUD))
    ears.hear(other.block(LOUD))
    await asyncio.sleep(0.01)
    assert [str(error) for listener in (one, other) for error in listener.failures] == ["broken"] * 2
    [third] = listeners(1)
    ears.hear(third.block(LOUD))
    await asyncio.sleep(0.01)
    assert third.heard


def test_a_loop_that_stopped_in_the_middle_of_a_round_leaves_the_next_one_free() -> None:
    ears, [one] = Ears(gather_s=0.01), listeners(1)

    async def begin() -> None:
        ears.hear(one.block(LOUD))

    async def hear() -> None:
        ears.hear(one.block(LOUD))
        await asyncio.sleep(0.05)

    asyncio.run(begin())
    asyncio.run(hear())
    assert len(one.heard) == 1
