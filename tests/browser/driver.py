"""A headless Chromium with a microphone that plays a recording, for any server that serves the page.

A browser is started for each page, since the recording is a switch of its command line.
"""

import shutil
import wave
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = [
    "--no-sandbox",  # tests run as root in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]
FAKE_MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
RECORDING_RATE = 48_000


@dataclass
class OpenPage:
    """A page and what it complained about."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    async def state(self) -> dict[str, Any]:
        """`window.voiceServe`."""
        return dict(await self.page.evaluate("window.voiceServe"))

    async def until(self, condition: str, timeout_s: float = 15) -> None:
        """Wait until the JavaScript expression holds; `state` in it is `window.voiceServe`."""
        function = f"() => {{ const state = window.voiceServe; return Boolean(state && ({condition})); }}"
        await self.page.wait_for_function(function, timeout=timeout_s * 1000, polling=20)


OpenPageFactory = Callable[..., AbstractAsyncContextManager[OpenPage]]


@asynccontextmanager
async def open_chromium(
    profile: Path, url: str, microphone: Path | None, switches: Sequence[str], **context: Any
) -> AsyncIterator[OpenPage]:
    """Skips the test where there is no Chromium; the browser ends with the block."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.async_api", reason="pip install playwright")
    switches = [*SWITCHES, *switches]
    if microphone is not None:
        switches += [*FAKE_MICROPHONE, f"--use-file-for-fake-audio-capture={microphone}%noloop"]
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=switches, **context
        )
        try:
            opened = OpenPage(browser.pages[0])
            opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
            opened.page.on("console", lambda message: note_complaint(opened, message))
            await opened.page.goto(url)
            yield opened
        finally:
            await browser.close()


def note_complaint(opened: OpenPage, message: Any) -> None:
    if message.type in ("error", "warning"):
        opened.complaints.append(message.text)


def write_recording(path: Path, audio: np.ndarray) -> Path:
    """float32 at RECORDING_RATE, as the WAV that Chromium's fake microphone reads."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RECORDING_RATE)
        file.writeframes((audio * 32767).astype("<i2").tobytes())
    return path


def babble(seconds: float) -> np.ndarray:
    """Something that a browser's noise suppression takes for a voice: gliding harmonics in syllables of 200 ms."""
    times = np.arange(int(seconds * RECORDING_RATE)) / RECORDING_RATE
    pitch = 2 * np.pi * np.cumsum(130 + 25 * np.sin(2 * np.pi * 1.3 * times)) / RECORDING_RATE
    voice = sum(np.sin(k * pitch) / k for k in range(1, 25))
    syllables = np.clip(1.6 * np.abs(np.sin(np.pi * 2.5 * times)), 0.15, 1)
    return np.asarray(0.25 * voice * syllables)
