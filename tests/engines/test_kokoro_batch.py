"""Several texts in one forward of Kokoro against each of them alone, on the CPU, with random weights."""

import asyncio
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.engines import create
from deployments.engines.kokoro import KokoroSynthesizer
from deployments.engines.kokoro_backends import Stop, Stopped, StopTogether, Text, TorchBackend
from deployments.options import TtsOptions

from . import kokoro_weights
from .support import RELEASE_S, cancelled_after, collected
from .test_kokoro_backends import quiet_torch, tone

LENGTHS = (3, 40, 17, 5)
SPEEDS = (1.0, 0.7, 1.3, 2.0)


@pytest.fixture(scope="module")
def folder(shared_models: Path) -> Path:
    return kokoro_weights.shared(shared_models / "kokoro-voices")


@pytest.fixture
def no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tone in place of the noise in the source, which each forward draws anew."""
    import torch

    monkeypatch.setattr(torch, "randn_like", tone)
    monkeypatch.setattr(torch, "rand", lambda *size, device=None: torch.zeros(*size, device=device))


def texts() -> list[Text]:
    dice = np.random.default_rng(1)
    return [
        Text(
            np.array([[0, *dice.integers(1, 80, length), 0]], np.int64),
            (dice.standard_normal((1, 256)) * 0.3).astype(np.float32),
            speed,
        )
        for length, speed in zip(LENGTHS, SPEEDS, strict=True)
    ]


def alike(folder: Path, count: int) -> list[TorchBackend]:
    """Backends of the same random weights."""
    import torch

    made = []
    for _ in range(count):
        torch.manual_seed(7)
        made.append(quiet_torch(folder))
    return made


def together(backend: TorchBackend, some: Sequence[Text]) -> list[tuple[Any, Any]]:
    return backend.forward_together(some, StopTogether([Stop()]))


@pytest.mark.usefixtures("no_chance")
def test_each_text_of_a_batch_sounds_as_it_does_alone(folder: Path) -> None:
    batch, alone = alike(folder, 2)
    for text, (audio, durations) in zip(texts(), together(batch, texts()), strict=True):
        audio_2, durations_2 = alone.forward(text.ids, text.style, text.speed, Stop())
        np.testing.assert_array_equal(durations, durations_2)
        assert len(audio) == len(audio_2) == 600 * durations.sum()
        assert np.abs(audio - audio_2).max() < 0.001 * np.abs(audio_2).max()


def test_each_text_of_a_batch_has_the_melody_it_has_alone(folder: Path) -> None:
    """Pitch and energy, which `test_each_text_of_a_batch_sounds_as_it_does_alone` hears only where they are no voice:
    of a voice, a millionth more pitch turns phases by half a circle, alone as well as in a batch."""
    batch, alone = alike(folder, 2)
    heard: list[tuple[Any, ...]] = []
    for backend in (batch, alone):
        backend._model.predictor.F0_proj.bias.data.fill_(140.0)
        backend._model.decoder.register_forward_pre_hook(lambda _, inputs: heard.append(inputs))
    together(batch, texts())
    (_, pitches, energies, _), *_ = heard
    for row, text in enumerate(texts()):
        alone.forward(text.ids, text.style, text.speed, Stop())
        _, pitch, energy, _ = heard[-1]
        steps = pitch.shape[-1]
        np.testing.assert_allclose(pitches[row, :steps], pitch[0], rtol=1e-5)
        np.testing.assert_allclose(energies[row, :steps], energy[0], atol=1e-5)
        assert not pitches[row, steps:].any()


@pytest.mark.usefixtures("no_chance")
def test_after_a_batch_a_text_alone_is_what_kokoro_itself_makes_of_it(folder: Path) -> None:
    import torch

    from deployments.engines import kokoro_export

    (backend,) = alike(folder, 1)
    together(backend, texts())
    text = texts()[1]
    audio, _ = backend.forward(text.ids, text.style, text.speed, Stop())
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        untouched = kokoro_export.load(folder, folder / "kokoro-test.pth", disable_complex=False)
    theirs, _ = untouched.forward_with_tokens(torch.tensor(text.ids), torch.tensor(text.style), text.speed)
    np.testing.assert_array_equal(audio, theirs.numpy())


def test_a_batch_stops_when_nobody_waits_for_any_of_it(folder: Path) -> None:
    (backend,) = alike(folder, 1)
    stops = [Stop(), Stop()]
    stops[0].set()
    assert len(backend.forward_together(texts()[:2], StopTogether(stops))) == 2
    stops[1].set()
    with pytest.raises(Stopped):
        backend.forward_together(texts()[:2], StopTogether(stops))


# --- in the engine --------------------------------------------------------------------------------------------------


class Held:
    """Lets the first forward of an engine begin and wait, and notes how many texts each has."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.begun, self._go_on = threading.Event(), threading.Event()
        alone, together = engine._forward, engine._forward_together
        monkeypatch.setattr(engine, "_forward", lambda *order: self._run(1, lambda: alone(*order)))
        monkeypatch.setattr(
            engine, "_forward_together", lambda orders: self._run(len(orders), lambda: together(orders))
        )

    def _run(self, size: int, forward: Any) -> Any:
        self.sizes.append(size)
        self.begun.set()
        assert self._go_on.wait(30)
        return forward()

    def go_on(self) -> None:
        self._go_on.set()


@pytest.fixture(scope="module")
def engine(folder: Path) -> KokoroSynthesizer:
    """As on a GPU."""
    engine: KokoroSynthesizer = create(TtsOptions(engine="kokoro", model=str(folder), backend="torch"))
    engine._backend.max_together = 8
    return engine


async def spoken(engine: KokoroSynthesizer, text: str) -> list[str]:
    chunks = await collected(engine.synthesize(text, voice="af_heart", speed=1.0))
    return [text[word.start_char : word.end_char] for chunk in chunks for word in chunk.words]


async def test_callers_share_a_forward_and_each_gets_its_own_words(
    engine: KokoroSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(engine, monkeypatch)
    async with asyncio.TaskGroup() as calls:
        first = calls.create_task(spoken(engine, "One."))
        await asyncio.to_thread(held.begun.wait, 30)
        others = [calls.create_task(spoken(engine, text)) for text in ("Two words.", "Three more words.")]
        await asyncio.sleep(0.1)
        held.go_on()
    assert first.result() == ["One."]
    assert [call.result() for call in others] == [["Two", "words."], ["Three", "more", "words."]]
    assert held.sizes == [1, 2]


async def test_a_cancelled_caller_is_left_out_of_the_forward(
    engine: KokoroSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(engine, monkeypatch)
    async with asyncio.TaskGroup() as calls:
        calls.create_task(spoken(engine, "One."))
        await asyncio.to_thread(held.begun.wait, 30)
        assert await cancelled_after(0.05, spoken(engine, "Two words.")) < RELEASE_S
        last = calls.create_task(spoken(engine, "Three more words."))
        await asyncio.sleep(0.1)
        held.go_on()
    assert last.result() == ["Three", "more", "words."]
    assert held.sizes == [1, 1]


async def test_a_short_piece_does_not_go_along_with_a_long_one(
    engine: KokoroSynthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(engine, monkeypatch)
    long = "This is one long sentence that goes on and on and on until the day is over and the night has come"
    async with asyncio.TaskGroup() as calls:
        calls.create_task(spoken(engine, "One."))
        await asyncio.to_thread(held.begun.wait, 30)
        calls.create_task(spoken(engine, "Short."))
        calls.create_task(spoken(engine, long))
        await asyncio.sleep(0.1)
        held.go_on()
    assert held.sizes == [1, 1, 1]
