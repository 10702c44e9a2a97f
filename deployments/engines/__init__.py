"""The engines, one file each. Importing this package imports no engine: `create` imports the one that is named."""

from importlib import import_module
from typing import Any

from deployments.options import LlmOptions, SttOptions, TtsOptions

TRANSCRIBERS = {
    "faster_whisper": "FasterWhisperTranscriber",
    "pocketsphinx": "PocketsphinxTranscriber",
    "scripted": "ScriptedTranscriber",
}
CHAT_MODELS = {
    "llama_cpp": "LlamaCppChatModel",
    "sglang": "SglangChatModel",
    "openai_compatible": "OpenAICompatibleChatModel",
    "scripted": "ScriptedChatModel",
}
SYNTHESIZERS = {
    "kokoro": "KokoroSynthesizer",
    "espeak": "EspeakSynthesizer",
    "scripted": "ScriptedSynthesizer",
}


_CLASSES: dict[type, dict[str, str]] = {
    SttOptions: TRANSCRIBERS,
    LlmOptions: CHAT_MODELS,
    TtsOptions: SYNTHESIZERS,
}


def create(options: SttOptions | LlmOptions | TtsOptions) -> Any:
    """The engine that `options.engine` names, its weights loaded and warmed up.

    Raises EngineFailed when its library or weights are missing, with the remedy. `auto` must have been decided before
    (`serve_app.app.build` does). Any: which protocol the result has follows from the type of `options`.
    """
    classes = _CLASSES[type(options)]
    module = import_module(f".{options.engine}", __name__)
    return getattr(module, classes[options.engine])(options)
