"""The page's tests: `stub` is the server, `say` makes what the microphone says, `open_page` opens a browser on it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver import RECORDING_RATE, OpenPage, OpenPageFactory, babble, open_chromium, write_recording
from stub_server import StubServer, stub_server


@pytest.fixture
async def stub() -> AsyncIterator[StubServer]:
    async with stub_server() as server:
        yield server


@pytest.fixture
def open_page(tmp_path: Path) -> OpenPageFactory:
    """`open_page(url, microphone)`: a microphone that says this recording once; None: a machine without one."""

    def open_page(
        url: str, microphone: Path | None = None, switches: Sequence[str] = (), **context: Any
    ) -> AbstractAsyncContextManager[OpenPage]:
        return open_chromium(tmp_path / "profile", url, microphone, switches, **context)

    return open_page


@pytest.fixture
def say(tmp_path: Path) -> Callable[..., Path]:
    """`say(1.0, 1.5, 4.0, ...)`: a recording of silence and speech in turn, of so many seconds each."""

    def say(*seconds: float) -> Path:
        parts = [babble(s) if i % 2 else np.zeros(int(s * RECORDING_RATE)) for i, s in enumerate(seconds)]
        return write_recording(tmp_path / "microphone.wav", np.concatenate(parts))

    return say
