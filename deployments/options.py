"""The options of each stage: what the `stt`, `llm` and `tts` blocks of a config may say, and what engines are built from.

Plain frozen dataclasses: `serve_app.config` validates them (types, unknown keys), an engine takes its stage's whole.
An option that an engine has no use for is ignored by it; one that it needs and lacks is an `EngineFailed`
at construction, with the remedy.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

DEFAULT_CONTEXT_TOKENS = 4096
"""The window of a llama_cpp conversation: twenty minutes of talk, and memory is taken for all of it at the start."""

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
    prompt_words_per_s: float = 0.0
    """How fast a prompt is read, beyond the beginning that it shares with one read before; 0: in no time."""
    calls: tuple[str, ...] = ()
    """Arguments, JSON: where tools are offered, an answer to anything but a tool's output ends with these calls, each of
    the first tool. Where a call is demanded it is made anyway, with "{}". "{output}" in an answer is the last output."""


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
    """A CTranslate2 compute type; auto: int8 on CPU, float16 on GPU, or the best that the GPU has instead."""
    short_windows: bool = True
    """Whisper: encode 10, 15 or 20 s where the utterance fits with a margin of 2 s, instead of always 30 s. What looks
    wrong in a short window is decoded again in one of 30 s."""
    max_batch: int = 8
    """Whisper: utterances decoded together at most, where that pays (any window on GPU, 10 s on CPU); 1: never."""
    batch_wait_ms: float = 5.0
    """Whisper: how long an idle replica waits for others to decode with the first."""
    scripted: ScriptedStt = field(default_factory=ScriptedStt)


@dataclass(frozen=True, slots=True)
class LlmOptions:
    __pydantic_config__ = _STRICT
    engine: Literal["auto", "llama_cpp", "sglang", "openai_compatible", "scripted"] = "auto"
    model: str = ""
    """llama_cpp: `repository:file.gguf` on the hub, or a path; sglang: a repository, or the path of such a folder;
    openai_compatible: the model's name at the server."""
    system_prompt: str = ""
    max_tokens: int = 200
    temperature: float = 0.7
    top_p: float = 0.95
    threads: int = 1
    chat_template: str = ""
    """llama_cpp: path of a Jinja template in place of the model's own, for instance one that knows tools."""
    context_tokens: int | None = None
    """The window of one conversation, prompt and answer; its oldest turns are dropped to stay in it. None: llama_cpp
    takes 4,096, sglang what the model has; with openai_compatible nothing is dropped, and the server may refuse."""
    parallel: int = 4
    """Conversations generated for at once by a llama_cpp replica. An sglang replica takes as many as there is room for;
    with it, this is how many `voice-serve doctor` looks for room for."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """sglang: arguments of `sglang.Engine` (its ServerArgs), for example `mem_fraction_static`."""
    prefill: bool | None = None
    """What a question will be asked after is read before it is asked: at the start of a session, and when instructions
    or items have changed. None: yes, but not with openai_compatible, where others may count the tokens."""
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
    """kokoro takes mixtures, "af_heart:0.7,am_michael:0.3"; espeak also a language, "en-us"."""
    speed: float = 1.0
    threads: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "torch", "onnx"] = "auto"
    """What computes kokoro. auto: torch on a GPU; on a CPU an ONNX export of the weights, made at the first start."""
    max_batch: int = 8
    """kokoro on a GPU: pieces of different callers spoken in one forward at most; 1: never."""
    scripted: ScriptedTts = field(default_factory=ScriptedTts)

    @property
    def mixes_voices(self) -> bool:
        return self.engine == "kokoro"
