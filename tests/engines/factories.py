"""Which engines the conformance suites run over: one entry an engine, with what the suite must know of it.

To add an engine, append an entry to its protocol's list. `build` may take its time, since each suite builds an engine
once; where the machine lacks the library or the weights it calls `pytest.skip` with what is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from deployments import models
from deployments.engines import create, silero_vad
from deployments.engines.scripted import UNKNOWN_VOICE
from deployments.interfaces import ChatModel, SpeechDetector, Synthesizer, Transcriber
from deployments.options import LlmOptions, ScriptedLlm, ScriptedStt, SttOptions, TtsOptions
from deployments.speakable import Speakable

from . import kokoro_weights
from .calling import CHAT_TEMPLATE


@dataclass(frozen=True)
class DetectorFactory:
    name: str
    build: Callable[[], Callable[[], SpeechDetector]]
    """Loads the model once and gives the maker of detectors."""


@dataclass(frozen=True)
class TranscriberFactory:
    name: str
    build: Callable[[], Transcriber]
    recording: str = "speech/cards-001.flac"
    """In shared/audio: an utterance in which the engine hears words."""
    refused_language: str | None = None
    """A language that the engine does not know; None where it knows all or does not care."""


@dataclass(frozen=True)
class ChatModelFactory:
    name: str
    build: Callable[[], ChatModel]
    prompt: str = "Count from one to one hundred in words."
    """Has an answer of 20 tokens or more."""
    called_with: str = '{"city": "Rome"}'
    """The arguments of its call for `calling.QUESTION`."""


@dataclass(frozen=True)
class SynthesizerFactory:
    name: str
    build: Callable[[], Synthesizer]
    voice: str = "af_heart"
    unknown_voice: str = "no-such-voice"
    has_word_times: bool = True
    text: str = field(default="Hello there, world. It is 10:30 and everything is fine.")


def shared_model(name: str) -> Path:
    folder = Path(__file__).parents[3] / "shared" / "models" / name
    if not folder.is_dir():
        pytest.skip(f"test data is not here: ../shared/models/{name}")
    return folder


def embedded_chat_model() -> LlmOptions:
    options = LlmOptions(
        engine="llama_cpp",
        model=models.EMBEDDED_CHAT_MODEL,
        parallel=2,
        context_tokens=1024,
        chat_template=str(CHAT_TEMPLATE),
    )
    if models.locate(options) is None:
        pytest.skip(models.missing(options))
    return options


def llama_server() -> ChatModel:
    """The engine over the HTTP server that xllamacpp starts with every model."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity = str(models.locate(embedded_chat_model())), -1
    params.n_parallel, params.n_ctx, params.n_batch = 2, 2048, 64
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.chat_template = CHAT_TEMPLATE.read_text()
    _servers.append(xllamacpp.Server(params))
    base_url = f"{_servers[-1].listening_address}/v1"
    engine: ChatModel = create(LlmOptions(engine="openai_compatible", base_url=base_url, model="smollm2"))
    return engine


def random_kokoro(backend: Literal["torch", "onnx"]) -> Synthesizer:
    folder = kokoro_weights.shared(shared_model("kokoro-voices"))
    engine: Synthesizer = create(TtsOptions(engine="kokoro", model=str(folder), backend=backend))
    return engine


_servers: list[Any] = []
"""Kept until the process ends."""

STORY = "Tell me a very long story about a dragon."
"""SmolLM2 answers the default prompt in a few words."""

DETECTORS = [DetectorFactory("silero", silero_vad.load)]

TRANSCRIBERS = [
    TranscriberFactory(
        "scripted",
        lambda: create(SttOptions(engine="scripted", scripted=ScriptedStt(transcripts=("always this",)))),
    ),
    TranscriberFactory(
        "pocketsphinx", lambda: create(SttOptions(engine="pocketsphinx", threads=2)), refused_language="de"
    ),
    TranscriberFactory(
        "faster_whisper",
        lambda: create(SttOptions(engine="faster_whisper", model=str(shared_model("whisper-digits-int8")))),
        recording="digits/george-01.flac",
        refused_language="de",
    ),
]

CHAT_MODELS = [
    ChatModelFactory(
        "scripted",
        lambda: create(LlmOptions(engine="scripted", scripted=ScriptedLlm(tokens_per_s=100))),
        called_with="{}",
    ),
    ChatModelFactory("llama_cpp", lambda: create(embedded_chat_model()), prompt=STORY),
    ChatModelFactory("openai_compatible", llama_server, prompt=STORY),
]

SYNTHESIZERS = [
    SynthesizerFactory(
        "scripted", lambda: create(TtsOptions(engine="scripted")), unknown_voice=UNKNOWN_VOICE
    ),
    SynthesizerFactory("espeak", lambda: create(TtsOptions(engine="espeak"))),
    SynthesizerFactory("kokoro_torch", lambda: random_kokoro("torch")),
    SynthesizerFactory("kokoro_onnx", lambda: random_kokoro("onnx")),
    SynthesizerFactory(
        "speakable", lambda: Speakable(create(TtsOptions(engine="espeak")), pronunciations="dropped")
    ),
]
