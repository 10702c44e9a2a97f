"""Sample formats: 16-bit PCM, float32, and the two laws of G.711 (ITU-T G.711, 64 kbit/s telephony).

The laws are two look-up tables each, built once from their formulas; one table look-up a sample each way.
"""

import numpy as np
import numpy.typing as npt

Audio = npt.NDArray[np.float32]
Samples = npt.NDArray[np.int16]

_FULL_SCALE = 32768.0
_MU_LAW_BIAS = 132
_MU_LAW_CLIP = 32635


def to_samples(audio: Audio) -> Samples:
    """float32 (n,) as int16 (n,): rounded, and clipped to full scale."""
    scaled: Audio = np.clip(np.rint(audio * np.float32(_FULL_SCALE)), -32768, 32767)
    return scaled.astype(np.int16)


def to_audio(samples: Samples) -> Audio:
    """int16 (n,) as float32 (n,) in [-1, 1); `to_samples` gives exactly the same samples back."""
    return samples.astype(np.float32) / np.float32(_FULL_SCALE)


def encode_pcm(audio: Audio) -> bytes:
    return to_samples(audio).astype("<i2", copy=False).tobytes()


def decode_pcm(pcm: bytes) -> Audio:
    """Raises ValueError for half a sample."""
    return to_audio(pcm_samples(pcm))


def pcm_samples(pcm: bytes) -> Samples:
    """int16 (n,), read-only: a view of the bytes. Raises ValueError for half a sample."""
    if len(pcm) % 2:
        raise ValueError(f"16-bit PCM has an even number of bytes, not {len(pcm)}")
    return np.frombuffer(pcm, dtype="<i2").astype(np.int16, copy=False)


def encode_mu_law(audio: Audio) -> bytes:
    return _MU_LAW_BYTES[to_samples(audio).view(np.uint16)].tobytes()


def decode_mu_law(data: bytes) -> Audio:
    return _MU_LAW_AUDIO[np.frombuffer(data, dtype=np.uint8)]


def encode_a_law(audio: Audio) -> bytes:
    return _A_LAW_BYTES[to_samples(audio).view(np.uint16)].tobytes()


def decode_a_law(data: bytes) -> Audio:
    return _A_LAW_AUDIO[np.frombuffer(data, dtype=np.uint8)]


def peak_dbfs(audio: Audio) -> float:
    """The loudest sample in dB below full scale; -inf for silence and for no audio."""
    peak = float(np.max(np.abs(audio), initial=0.0))
    return 20.0 * float(np.log10(peak)) if peak > 0.0 else float("-inf")


def _every_sample() -> npt.NDArray[np.int32]:
    """All int16 values, ordered by their bit pattern read as uint16: the index of an encoding table."""
    return np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32)


def _segment(magnitude: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Which of the eight logarithmic segments holds a magnitude: 0 below 256, then one more an octave."""
    exponent: npt.NDArray[np.int32] = np.frexp(magnitude.astype(np.float64))[1].astype(np.int32) - 8
    return np.clip(exponent, 0, 7).astype(np.int32)


def _mu_law_bytes() -> npt.NDArray[np.uint8]:
    sample = _every_sample()
    magnitude = np.minimum(np.abs(sample), _MU_LAW_CLIP) + _MU_LAW_BIAS
    segment = _segment(magnitude)
    mantissa = (magnitude >> (segment + 3)) & 0x0F
    code: npt.NDArray[np.int32] = ~(np.where(sample < 0, 0x80, 0) | (segment << 4) | mantissa) & 0xFF
    return code.astype(np.uint8)


def _mu_law_audio() -> Audio:
    code = ~np.arange(256) & 0xFF
    magnitude = ((((code & 0x0F) << 3) + _MU_LAW_BIAS) << ((code >> 4) & 7)) - _MU_LAW_BIAS
    return to_audio(np.where(code & 0x80, -magnitude, magnitude).astype(np.int16))


def _a_law_bytes() -> npt.NDArray[np.uint8]:
    sample = _every_sample()
    magnitude = np.where(sample < 0, ~sample, sample)
    segment = _segment(magnitude)
    mantissa = (magnitude >> (np.maximum(segment, 1) + 3)) & 0x0F
    code: npt.NDArray[np.int32] = ((segment << 4) | mantissa) ^ np.where(sample < 0, 0x55, 0xD5)
    return code.astype(np.uint8)


def _a_law_audio() -> Audio:
    code = np.arange(256) ^ 0x55
    segment = (code >> 4) & 7
    step = ((code & 0x0F) << 4) + 8
    magnitude = np.where(segment == 0, step, (step + 256) << np.maximum(segment - 1, 0))
    return to_audio(np.where(code & 0x80, magnitude, -magnitude).astype(np.int16))


_MU_LAW_BYTES, _MU_LAW_AUDIO = _mu_law_bytes(), _mu_law_audio()
_A_LAW_BYTES, _A_LAW_AUDIO = _a_law_bytes(), _a_law_audio()
