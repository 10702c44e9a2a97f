"""The options of each stage: what the `stt`, `llm` and `tts` blocks of a config may say, and what engines are built from.

Plain frozen dataclasses: `serve_app.config` validates them (types, unknown keys), an engine takes its stage's whole.
An option that an engine has no use for is ignored by it; one that it needs and lacks is an `EngineFailed`
at construction, with the remedy.
"""

from dataclasses import dataclass, field
from typing import Literal

_STRICT = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class ScriptedStt:
    """Options of the `scripted` transcriber."""

    __pydantic_config__ = _STRICT
    latency_s: float = 0.1
    """From call to transcript."""
    transcripts: tuple[str, ...] = ("tell me something",)
    """Given in turn, one a call; silence (peak under -60 dBFS) always gives ""."""


@dataclass(frozen=True, slots=True)
class ScriptedLlm:
    """Options of the `scripted` chat model."""

    __pydantic_config__ = _STRICT
    first_token_s: float = 0.1
    tokens_per_s: float = 50.0
    answers: tuple[str, ...] = ()
    """Given in turn, one a call; empty: one built-in answer of `answer_words` numbered words."""
    answer_words: int = 40


@dataclass(frozen=True, slots=True)
class ScriptedTts:
    """Options of the `scripted` synthesizer."""

    __pydantic_config__ = _STRICT
    first_audio_s: float = 0.1
    word_s: float = 0.3
    """How long each word sounds, at speed 1."""
    realtime_factor: float = 0.05
    """Seconds of computing a second of audio, after the first chunk."""
    has_word_times: bool = True


@dataclass(frozen=True, slots=True)
class SttOptions:
    __pydantic_config__ = _STRICT
    engine: Literal["auto", "faster_whisper", "pocketsphinx", "scripted"] = "auto"
    model: str = "base.en"
    """A Whisper size, a hub repository of CTranslate2 weights, or the path of such a folder."""
    language: str | None = "en"
    """None: the model finds out."""
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_type: str = "auto"
    """A CTranslate2 compute type; auto: int8 on CPU, float16 on GPU."""
    scripted: ScriptedStt = field(default_factory=ScriptedStt)


@dataclass(frozen=True, slots=True)
class LlmOptions:
    __pydantic_config__ = _STRICT
    engine: Literal["auto", "llama_cpp", "openai_compatible", "scripted"] = "auto"
    model: str = ""
    """llama_cpp: `repository:file.gguf` on the hub, or a path; openai_compatible: the model's name at the server."""
    system_prompt: str = ""
    max_tokens: int = 200
    temperature: float = 0.7
    top_p: float = 0.95
    threads: int = 1
    context_tokens: int = 4096
    """Context window of one conversation."""
    parallel: int = 4
    """Conversations generated for at once by a llama_cpp replica."""
    base_url: str = ""
    """openai_compatible: up to and including /v1."""
    api_key_env: str = ""
    """openai_compatible: name of the environment variable with the key."""
    api_key: str = field(default="", repr=False)
    """Filled in from `api_key_env` when the application is built; do not write keys into a file."""
    scripted: ScriptedLlm = field(default_factory=ScriptedLlm)


@dataclass(frozen=True, slots=True)
class TtsOptions:
    __pydantic_config__ = _STRICT
    engine: Literal["auto", "kokoro", "espeak", "scripted"] = "auto"
    model: str = "hexgrad/Kokoro-82M"
    """A hub repository, or the path of a folder with config.json, the weights and voices/."""
    voice: str = "af_heart"
    speed: float = 1.0
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    scripted: ScriptedTts = field(default_factory=ScriptedTts)
