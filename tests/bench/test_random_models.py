"""Random weights of true shapes: what is not random in them is what the benchmarks rely on."""

import asyncio
import warnings
from pathlib import Path

import numpy as np
import pytest

from deployments import models
from deployments.engines import create
from deployments.interfaces import TRANSCRIBER_RATE
from deployments.options import LlmOptions, SttOptions, TtsOptions
from loadtest import bench_models


@pytest.mark.parametrize("seconds", [1, 12])
async def test_the_random_whisper_says_its_sentence_at_the_first_decoding(
    tmp_path: Path, seconds: int
) -> None:
    bench_models.write_whisper(tmp_path, bench_models.WHISPER_TINY, quantization="int8")
    engine = create(SttOptions(engine="faster_whisper", model=str(tmp_path)))
    noise = np.random.default_rng(0).normal(0, 3000, seconds * TRANSCRIBER_RATE).astype(np.int16)
    transcript = await engine.transcribe(noise.tobytes(), language="en", prompt=None)
    assert transcript.text == bench_models.TRANSCRIPT
    assert engine.batches.batches == 1, "a doubtful decoding is repeated"


def test_the_random_llama_is_complete_and_all_it_can_say_are_words(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bench_models.write_llama(tmp_path, bench_models.LLAMA_TINY)
    assert models.locate(LlmOptions(engine="sglang", model=str(tmp_path))) == tmp_path
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    said = tokenizer.decode(range(6, bench_models.LLAMA_TINY.vocabulary)).split()
    assert len(said) == bench_models.LLAMA_TINY.vocabulary - 6
    assert all(word.strip(".,").isalpha() for word in said)
    assert any(word.endswith(".") for word in said)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], return_dict=False)


def test_the_random_kokoro_speaks_at_the_speed_of_speech(tmp_path: Path) -> None:
    bench_models.write_kokoro(tmp_path / "kokoro", bench_models.KOKORO_TINY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = create(TtsOptions(engine="kokoro", model=str(tmp_path / "kokoro"), backend="torch"))
    text = "Sure, I can do that for you, but it may take me a little while today."

    async def spoken_s() -> float:
        stream = engine.synthesize(text, voice="af_heart", speed=1.0)
        return sum([len(chunk.pcm) / 2 / chunk.sample_rate async for chunk in stream])

    phonemes = sum(len(piece.phonemes) for piece in engine._pieces(text, "a"))
    assert asyncio.run(spoken_s()) == pytest.approx(phonemes / bench_models.PHONEMES_A_SECOND, rel=0.3)
