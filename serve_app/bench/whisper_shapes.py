"""Whisper models of true dimensions with random weights: what a window costs, where no real weights can be had.

Time depends on the shape alone, so the figures hold for the real models; the words do not exist. Decoding is timed
over `TOKENS` tokens, a sentence's worth, with the end of the text suppressed.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from deployments.interfaces import Transcript
from deployments.microbatch import Job, MicroBatcher

TOKENS = 20
WINDOWS_S = (30, 20, 15, 10)
BATCHES = (1, 4, 8)
_SPECIAL = {
    50256: "<|endoftext|>",
    50257: "<|startoftranscript|>",
    50357: "<|translate|>",
    50358: "<|transcribe|>",
    50360: "<|startofprev|>",
    50361: "<|nospeech|>",
    50362: "<|notimestamps|>",
}
_END, _START, _NO_TIMESTAMPS = 50256, 50257, 50362


@dataclass(frozen=True, slots=True)
class Shape:
    encoder_layers: int
    decoder_layers: int
    heads: int
    width: int
    mel_bands: int = 80
    vocabulary: int = 51_864


SHAPES = {
    "tiny": Shape(4, 4, 6, 384),
    "base": Shape(6, 6, 8, 512),
    "small": Shape(12, 12, 12, 768),
    "medium": Shape(24, 24, 16, 1024),
    "distil-medium": Shape(24, 2, 16, 1024),
    "large-v3-turbo": Shape(32, 4, 20, 1280, mel_bands=128, vocabulary=51_866),
    "large-v3": Shape(32, 32, 20, 1280, mel_bands=128, vocabulary=51_866),
}
"""Those of openai/whisper and distil-whisper."""
_LOUD = 4.0
"""Standard deviation of a script's position encodings; what the layers add to them has 1 to 2."""
_CERTAIN = 25.0
"""About the logit of a script's token; 50,000 others have up to 3."""


@dataclass(frozen=True, slots=True)
class ShapeTime:
    shape: str
    threads: int
    window_s: int
    batch: int
    encode_s: float
    """Of one utterance in its batch."""
    decode_s: float
    """Of one utterance in its batch: `TOKENS` tokens."""


def measure(name: str, *, threads: int, repeats: int = 3) -> Iterator[ShapeTime]:
    """The best of `repeats` for each window alone, and for the shortest in batches.

    The best, because another load on the machine only ever adds to a time.
    """
    from ctranslate2.models import Whisper

    with random_model(SHAPES[name]) as folder:
        model = Whisper(folder, device="auto", compute_type="auto", intra_threads=threads)
        for window_s in WINDOWS_S:
            for batch in BATCHES if window_s == min(WINDOWS_S) else BATCHES[:1]:
                encode_s, decode_s = _times(model, SHAPES[name], window_s, batch, repeats)
                yield ShapeTime(name, threads, window_s, batch, encode_s / batch, decode_s / batch)


def _times(model: Any, shape: Shape, window_s: int, batch: int, repeats: int) -> tuple[float, float]:
    from ctranslate2 import StorageView

    random = np.random.default_rng(0)
    features = random.normal(0, 0.5, (batch, shape.mel_bands, window_s * 100)).astype(np.float32)
    prompts = [[_START, _NO_TIMESTAMPS]] * batch

    def encode() -> Any:
        # to_cpu waits for a GPU to have done it.
        return model.encode(StorageView.from_array(features), to_cpu=True)

    encoded = encode()

    def decode() -> Any:
        return model.generate(encoded, prompts, beam_size=1, max_length=2 * TOKENS, suppress_tokens=[_END])

    return _best(encode, repeats), _best(decode, repeats)


def _best(work: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


class ShapeTranscriber:
    """A shape behind the micro-batcher as the engine has it on a CPU: windows encoded one by one and decoded together.

    Every utterance takes the shortest window and `TOKENS` tokens, and comes to nothing.
    """

    def __init__(self, name: str, folder: str, *, threads: int, max_batch: int) -> None:
        from ctranslate2 import StorageView
        from ctranslate2.models import Whisper

        self._model = Whisper(folder, device="cpu", compute_type="int8", intra_threads=threads)
        self._storage = StorageView.from_array
        self._features = np.zeros((1, SHAPES[name].mel_bands, min(WINDOWS_S) * 100), np.float32)
        self.batches: MicroBatcher[None, None] = MicroBatcher(
            self._decode, max_batch=lambda _: max_batch, max_wait_s=0.005, stage="stt", engine=name
        )

    async def transcribe(
        self, pcm: bytes, *, language: str | None, prompt: str | None, is_interim: bool = False
    ) -> Transcript:
        await self.batches.submit(None, key=None, is_interim=is_interim)
        return Transcript("")

    def _decode(self, jobs: Sequence[Job[None]]) -> list[None]:
        encodings = [np.asarray(self._model.encode(self._storage(self._features))) for _ in jobs]
        prompts = [[_START, _NO_TIMESTAMPS]] * len(jobs)
        encoded = self._storage(np.concatenate(encodings))
        self._model.generate(encoded, prompts, beam_size=1, max_length=2 * TOKENS, suppress_tokens=[_END])
        return [None] * len(jobs)


@contextmanager
def random_model(shape: Shape) -> Iterator[str]:
    """A folder with a CTranslate2 Whisper (int8) of this shape, while the block lasts."""
    with TemporaryDirectory() as folder:
        write(shape, Path(folder), [_SPECIAL.get(i, f"t{i}") for i in range(shape.vocabulary)])
        yield folder


def write(
    shape: Shape,
    folder: Path,
    vocabulary: Sequence[str],
    *,
    languages: Sequence[int] = (),
    quantization: str = "int8",
    script: Mapping[int, int] | None = None,
) -> None:
    """A CTranslate2 Whisper of this shape into `folder`. `languages`: their tokens, none for an English-only model.

    All weights are random. A script (position in the decoder -> the token that follows) makes the position encodings of the decoder loud and its output rows for those
    tokens copies of them, so that what follows hangs on the position alone: nothing is left out of the computing.
    """
    from ctranslate2.specs import WhisperSpec

    spec = WhisperSpec(shape.encoder_layers, shape.heads, shape.decoder_layers, shape.heads)
    fill = _Filler()
    fill.linear(spec.encoder.conv1, shape.width, shape.mel_bands, 3)
    fill.linear(spec.encoder.conv2, shape.width, shape.width, 3)
    fill.stack(spec.encoder, positions=1500, width=shape.width)
    fill.embeddings(spec.decoder.embeddings, shape.vocabulary, shape.width)
    fill.linear(spec.decoder.projection, shape.vocabulary, shape.width)
    fill.stack(spec.decoder, positions=448, width=shape.width)
    if script:
        positions = spec.decoder.position_encodings.encodings
        positions *= _LOUD / positions.std()
        for position, token in script.items():
            spec.decoder.projection.weight[token] = positions[position] * (_CERTAIN / shape.width / _LOUD)
    spec.register_vocabulary(list(vocabulary))
    spec.config.add_attribute("suppress_ids", [])
    spec.config.add_attribute("suppress_ids_begin", [])
    spec.config.add_attribute("lang_ids", list(languages))
    spec.config.add_attribute("alignment_heads", [[0, 0]])
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(folder))


class _Filler:
    """Random arrays for the parts of a model specification."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)

    def _array(self, *shape: int) -> npt.NDArray[np.float32]:
        return (self._random.standard_normal(shape, np.float32) * np.float32(0.02)).astype(np.float32)

    def linear(self, spec: Any, outputs: int, *inputs: int) -> None:
        spec.weight, spec.bias = self._array(outputs, *inputs), self._array(outputs)

    def embeddings(self, spec: Any, count: int, width: int) -> None:
        spec.weight = self._array(count, width)

    def norm(self, spec: Any, width: int) -> None:
        spec.gamma, spec.beta = np.ones(width, np.float32), np.zeros(width, np.float32)

    def stack(self, spec: Any, *, positions: int, width: int) -> None:
        spec.position_encodings.encodings = self._array(positions, width)
        self.norm(spec.layer_norm, width)
        for layer in spec.layer:
            self.attention(layer.self_attention, width, (3 * width, width))
            if hasattr(layer, "attention"):
                self.attention(layer.attention, width, (width, 2 * width, width))
            self.norm(layer.ffn.layer_norm, width)
            self.linear(layer.ffn.linear_0, 4 * width, width)
            self.linear(layer.ffn.linear_1, width, 4 * width)

    def attention(self, spec: Any, width: int, outputs: Sequence[int]) -> None:
        """The projections are fused: queries, keys and values in one, or keys and values."""
        self.norm(spec.layer_norm, width)
        for linear, size in zip(spec.linear, outputs, strict=True):
            self.linear(linear, size, width)
