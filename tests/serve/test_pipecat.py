"""A Pipecat voice bot over our three REST services takes one spoken turn.

Pipecat may live in an environment of its own: PIPECAT_PYTHON=/path/to/python. Without either, this is skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import soxr

from deployments.engines.scripted_code import decode_words
from loadtest.application import Application, free_port

pytestmark = [
    pytest.mark.ray,
    # Ray leaves sockets and files to its own shutdown.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BOT = Path(__file__).with_name("pipecat_bot.py")


@pytest.fixture(scope="session")
def python() -> str:
    """An interpreter that has Pipecat."""
    if named := os.environ.get("PIPECAT_PYTHON"):
        return named
    # aiofiles: with what it needs, and not for the sake of smart-turn's model alone.
    if any(importlib.util.find_spec(name) is None for name in ("pipecat", "aiofiles")):
        pytest.skip('needs pipecat: pip install "pipecat-ai[openai]", or set PIPECAT_PYTHON')
    return sys.executable


def test_a_pipecat_bot_takes_a_turn(
    python: str, app: Application, shared_audio: Path, tmp_path: Path
) -> None:
    audio, rate = soundfile.read(shared_audio / "speech" / "p287_001.flac")
    recording = tmp_path / "question.wav"
    soundfile.write(recording, soxr.resample(audio, rate, 16_000), 16_000, subtype="PCM_16")
    command = [python, str(BOT), f"{app.http}/v1", str(recording), str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    turn = json.loads(done.stdout.splitlines()[-1])
    assert {"role": "user", "content": "tell me something"} in turn["messages"]
    heard, rate = soundfile.read(tmp_path / "heard.wav", dtype="float32")
    words = [number for number, _, _ in decode_words(heard, rate, word_s=0.3)]
    assert words[:7] == list(range(7)), "the scripted answer, word for word, as sound"
    print(done.stdout)
