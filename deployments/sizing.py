"""How much memory a model needs: parameters x bytes x 1.2, and the memory of its context by its own shape.

- The fifth on top is what the rule of thumb gives to activations, buffers and fragmentation.
- A context's memory (the KV cache) is two vectors a layer, a token: 2 x layers x kv_heads x head_size x bytes.
- Shapes are read from the file where it is on this machine (a GGUF's header, `config.json` of a transformer, the list
  of variables of a CTranslate2 Whisper), and taken from the catalogue below where it is not.
- Nothing is loaded and the network is not used.
"""

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from . import gguf, models
from .engines import smart_turn
from .interfaces import Stage
from .options import DEFAULT_CONTEXT_TOKENS, LlmOptions, SttOptions, TtsOptions

Device = Literal["cpu", "cuda"]

OVERHEAD = 1.2
_MB = 1_000_000

_WHISPER_SHAPES = {
    "distil-small": (166, 4, 768),
    "distil-medium": (394, 2, 1024),
    "distil-large": (756, 2, 1280),
    "turbo": (809, 4, 1280),
    "tiny": (39, 4, 384),
    "base": (74, 6, 512),
    "small": (244, 12, 768),
    "medium": (769, 24, 1024),
    "large": (1550, 32, 1280),
}
"""Part of the name -> millions of parameters, decoder layers, width. From the model cards of openai/whisper and
huggingface/distil-whisper; the first name that matches counts."""
_WHISPER_TOKENS = 1500 + 448
"""Of 30 s of audio, and of the longest transcript."""
_COMPUTE_BYTES = {"int8": 1, "int16": 2, "float16": 2, "bfloat16": 2, "float32": 4}

_CHAT_SHAPES = {
    "llama-3.1-8b": (8_030, 32, 8, 128),
    "llama-3.2-3b": (3_213, 28, 8, 128),
    "llama-3.2-1b": (1_236, 16, 8, 64),
    "qwen2.5-0.5b": (494, 24, 2, 64),
    "qwen2.5-1.5b": (1_544, 28, 2, 128),
    "qwen2.5-3b": (3_086, 36, 2, 128),
    "qwen2.5-7b": (7_616, 28, 4, 128),
    "qwen3-8b": (8_191, 36, 8, 128),
}
"""Part of the name -> millions of parameters, layers, KV heads, head size. From each model's config.json."""
_DTYPE_BYTES = {"float32": 4, "float": 4}
"""Any other is of 16 bits."""
_GGUF_BITS = re.compile(r"(?:q|f|bf)(\d+)(?:_[a-z0-9_]+)?\.gguf$", re.IGNORECASE)
_GGUF_EXTRA_BITS = 1.0
"""A parameter, for scales and for the tables that are kept larger: 4.85 bits for Q4_K_M, 5.8 in a small model."""
_KV_BYTES = 2
"""llama.cpp and SGLang keep keys and values as 16-bit numbers."""

_KOKORO_BYTES = 82 * _MB * 4
_SMART_TURN_BYTES = 8_679_182
_SMART_TURN_WORK_BYTES = 47 * _MB
"""What its first calls add to a process, measured: it computes one window at a time, for all sessions."""
_LIBRARY_BYTES = {
    "faster_whisper": 80 * _MB,
    "pocketsphinx": 120 * _MB,
    "llama_cpp": 50 * _MB,
    "sglang": 3_000 * _MB,
    "kokoro": 450 * _MB,
    "espeak": 10 * _MB,
}
"""System memory of an engine's libraries, in all its processes."""
REPLICA_BYTES = 100 * _MB
"""A Ray Serve replica before its engine."""
CUDA_CONTEXT_BYTES = 500 * _MB
"""GPU memory that a process takes before it holds anything: 300 to 600 MB, by driver and libraries."""


@dataclass(frozen=True, slots=True)
class Need:
    """The memory of one replica's model."""

    stage: Stage
    engine: str
    model: str
    weight_bytes: int = 0
    """Parameters x bytes of each, as they are loaded."""
    context_bytes: int = 0
    """Of all conversations at once."""
    process_bytes: int = 0
    """System memory of the replica and its libraries, wherever the model is."""
    source: str = ""
    """Where the figures are from, for a person; empty for an engine that loads no model of its own."""
    is_known: bool = True
    """False: a model that is neither here nor in the catalogue; its bytes are 0."""

    @property
    def model_bytes(self) -> int:
        return int(self.weight_bytes * OVERHEAD) + self.context_bytes


@dataclass(frozen=True, slots=True)
class _Shape:
    weight_bytes: int
    context_numbers: int
    """Numbers that one token leaves in the context's memory."""
    source: str


def need(options: SttOptions | LlmOptions | TtsOptions, device: Device) -> Need:
    """What one replica of `options` needs on `device`; `engine: auto` counts as the engine that it would like to be."""
    match options:
        case SttOptions():
            return _transcriber(options, device)
        case LlmOptions():
            return _chat_model(options)
        case TtsOptions():
            return _synthesizer(options)


def turn_judge() -> Need:
    """What smart-turn needs in each ingress replica, beside the voice activity detector and with its library."""
    path = smart_turn.model_path()
    size, source = (path.stat().st_size, "its file's size") if path else (_SMART_TURN_BYTES, "the catalogue")
    model = path.stem if path else "smart-turn"
    return Need("turn", "smart_turn", model, size, _SMART_TURN_WORK_BYTES, source=source)


def _need(
    stage: Stage,
    engine: str,
    model: str,
    shape: _Shape | None,
    context_tokens: int = 0,
    kv_bytes: int = _KV_BYTES,
) -> Need:
    process_bytes = REPLICA_BYTES + _LIBRARY_BYTES.get(engine, 0)
    if shape is None:
        return Need(stage, engine, model, process_bytes=process_bytes, is_known=False)
    context_bytes = shape.context_numbers * context_tokens * kv_bytes
    return Need(stage, engine, model, shape.weight_bytes, context_bytes, process_bytes, shape.source)


def _small(stage: Stage, engine: str, model: str) -> Need:
    """An engine without weights of its own, or with its model in the package."""
    return _need(stage, engine, model, _Shape(0, 0, ""))


# --- Whisper --------------------------------------------------------------------------------------------------------


def _transcriber(options: SttOptions, device: Device) -> Need:
    engine = "faster_whisper" if options.engine == "auto" else options.engine
    if engine != "faster_whisper":
        return _small("stt", engine, engine)
    automatic = "float16" if device == "cuda" else "int8"
    compute = automatic if options.compute_type in ("auto", "default") else options.compute_type
    each = _COMPUTE_BYTES.get(compute.split("_")[0], 4)
    folder = models.locate(options)
    shape = _whisper_file(folder / "model.bin", each) if folder else None
    shape = shape or _whisper_catalogue(options.model, each)
    # Keys and values are computed in the type that the activations have. On a CPU long windows are decoded one by one.
    tokens = _WHISPER_TOKENS * (options.max_batch if device == "cuda" else 1)
    return _need("stt", engine, options.model, shape, tokens, 2 if "16" in compute else 4)


def _whisper_catalogue(model: str, each: int) -> _Shape | None:
    name = model.lower()
    millions, layers, width = next((s for part, s in _WHISPER_SHAPES.items() if part in name), (0, 0, 0))
    if not millions:
        return None
    return _Shape(
        millions * _MB * each, 2 * layers * width, f"{millions} M parameters of {each} bytes, by its name"
    )


def _whisper_file(path: Path, each: int) -> _Shape | None:
    """From the variables of a CTranslate2 model; the layout is `ModelSpec.save` in its specs/model_spec.py."""
    parameters, layers, width = 0, set(), 0
    try:
        with path.open("rb") as file:
            _unpack(file, "I"), _text(file), _unpack(file, "I")
            for _ in range(*_unpack(file, "I")):
                name = _text(file)
                dimensions = _unpack(file, "I" * _unpack(file, "B")[0])
                _, size = _unpack(file, "BI")
                file.seek(size, 1)
                if not name.endswith("_scale"):
                    parameters += math.prod(dimensions)
                if name == "decoder/embeddings/weight":
                    width = dimensions[1]
                if name.startswith("decoder/layer_"):
                    layers.add(name.split("/")[1])
    except (OSError, struct.error, ValueError, IndexError):
        return None
    source = f"{parameters / _MB:.3g} M parameters of {each} bytes, by its file"
    return _Shape(parameters * each, 2 * len(layers) * width, source)


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _text(file: BinaryIO) -> str:
    return file.read(*_unpack(file, "H")).rstrip(b"\0").decode()


# --- language models ------------------------------------------------------------------------------------------------


def _chat_model(options: LlmOptions) -> Need:
    engine = "llama_cpp" if options.engine == "auto" else options.engine
    if engine not in ("llama_cpp", "sglang"):
        return _small("llm", engine, options.model or engine)
    model = options.model or models.DEFAULT_CHAT_MODEL
    tokens = (options.context_tokens or DEFAULT_CONTEXT_TOKENS) * options.parallel
    path = models.locate(options)
    if engine == "llama_cpp":
        shape = _gguf_file(path) if path else _gguf_catalogue(model, options)
    else:
        shape = _transformer(path, options) if path else _transformer_catalogue(model, options)
    return _need("llm", engine, model, shape, tokens)


def _gguf_file(path: Path) -> _Shape | None:
    try:
        header = gguf.read(path)
    except gguf.Unreadable:
        return None
    heads = (header.key_size or 0) + (header.value_size or 0)
    numbers = (header.layers or 0) * (header.kv_heads or 0) * heads
    return _Shape(path.stat().st_size, numbers, "its file's size and header")


def _gguf_catalogue(model: str, options: LlmOptions) -> _Shape | None:
    millions, layers, kv_heads, head_size = _chat_catalogue(model)
    named = _GGUF_BITS.search(model)
    weights = models.describe(options)
    size = weights.size_bytes if weights else None
    if not millions or not (named or size):
        return None
    bits = float(named[1]) + _GGUF_EXTRA_BITS if named else 0.0
    return _Shape(size or int(millions * _MB * bits / 8), 2 * layers * kv_heads * head_size, "the catalogue")


def _transformer(folder: Path, options: LlmOptions) -> _Shape | None:
    """From `config.json` and the size of the weights. Configs of models that also see or hear have a part for text."""
    try:
        config = json.loads((folder / "config.json").read_text())
        text = config.get("text_config", config)
        heads = text["num_attention_heads"]
        head_size = text.get("head_dim") or text["hidden_size"] // heads
        numbers = 2 * text["num_hidden_layers"] * text.get("num_key_value_heads", heads) * head_size
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    stored_as = (
        text.get("torch_dtype") or text.get("dtype") or config.get("torch_dtype") or config.get("dtype")
    )
    each = _loaded_bytes(options)
    parameters = stored // _DTYPE_BYTES.get(str(stored_as), 2)
    is_quantized = "quantization_config" in config
    weight_bytes = stored if is_quantized else parameters * each
    return _Shape(weight_bytes, numbers, "its files' size and config.json")


def _transformer_catalogue(model: str, options: LlmOptions) -> _Shape | None:
    millions, layers, kv_heads, head_size = _chat_catalogue(model)
    if not millions:
        return None
    each = _loaded_bytes(options)
    source = f"{millions} M parameters of {each} bytes, by its name"
    return _Shape(millions * _MB * each, 2 * layers * kv_heads * head_size, source)


def _loaded_bytes(options: LlmOptions) -> int:
    """Bytes of a parameter in SGLang, which turns float32 into 16 bits unless told otherwise."""
    if options.engine_args.get("quantization") == "fp8":
        return 1
    return _DTYPE_BYTES.get(str(options.engine_args.get("dtype")), 2)


def _chat_catalogue(model: str) -> tuple[int, int, int, int]:
    name = model.lower()
    return next((shape for part, shape in _CHAT_SHAPES.items() if part in name), (0, 0, 0, 0))


# --- Kokoro ---------------------------------------------------------------------------------------------------------


def _synthesizer(options: TtsOptions) -> Need:
    engine = "kokoro" if options.engine == "auto" else options.engine
    if engine != "kokoro":
        return _small("tts", engine, engine)
    return _need("tts", engine, options.model, _Shape(_KOKORO_BYTES, 0, "82 M parameters of 4 bytes"))
