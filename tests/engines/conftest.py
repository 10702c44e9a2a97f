"""The recordings of `shared/audio` as the engines take them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile


@pytest.fixture(scope="session")
def recording(shared_audio: Path) -> Callable[[str], bytes]:
    """Reads a file of shared/audio by its path there: 16-bit PCM, mono, 16 kHz."""

    def read(path: str) -> bytes:
        samples, sample_rate = soundfile.read(shared_audio / path, dtype="int16")
        assert sample_rate == 16_000
        return bytes(samples.astype("<i2").tobytes())

    return read
