"""Models of true dimensions with random weights, for benchmarks where no real ones can be had.

Time and memory depend on the shape alone, so they hold for the real models; what is said means nothing. Three things
are not random, because the work hangs on them:

- Whisper's transcript: the words follow from the position (`whisper_shapes.write`), so that a decoding has the length
  of a sentence and passes the guards that would decode a random one three times over. All of it is computed.
- The chat model's tokens are speakable words with commas and full stops. Which of them come is chance; how many is
  `max_tokens`, since none of them is the end of a text.
- Kokoro's durations: `PHONEMES_A_SECOND`, where random ones would be ten times as long.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.bench import whisper_shapes
from serve_app.bench.whisper_shapes import Shape

TRANSCRIPT = "please tell me something about the old harbour by the sea."
PHONEMES_A_SECOND = 15.0
"""Of Kokoro's real weights, on English at speed 1."""

_WORDS = """the sea was calm and old boats came home from far away with fish bread wine salt while people on the shore
    sang songs of summer winter stars rain light doors streets gardens houses friends children letters maps roads hills
    """.split()  # noqa: SIM905 - reads best as words
_WORDS_A_CLAUSE, _WORDS_A_SENTENCE = 5, 10
"""A word in so many ends one."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
_CHAT_TOKENS = ("<unk>", "<begin>", "<end>", "<system>", "<user>", "<assistant>")


# --- Whisper --------------------------------------------------------------------------------------------------------

WHISPER_TINY = Shape(2, 2, 2, 64, mel_bands=128, vocabulary=51_866)
_WHISPER_TEXT = 50_257
"""Tokens of text; the special ones follow."""
_PROMPT = 4
"""Tokens before the first word: start, language, task, no timestamps."""


def write_whisper(folder: Path, shape: Shape, *, quantization: str) -> None:
    """A multilingual Whisper with the vocabulary of large-v3, which says `TRANSCRIPT` to everything."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = TRANSCRIPT.split()
    first = 1_000
    # By the empty word, their last of text, CTranslate2 tells the multilingual models.
    vocabulary = [*(f"t{i}" for i in range(_WHISPER_TEXT - 1)), "", *_whisper_special()]
    vocabulary[first : first + len(words)] = [f" {word}#{i}" for i, word in enumerate(words)]
    script = {_PROMPT - 1 + i: first + i for i in range(len(words))} | {
        _PROMPT - 1 + len(words): _WHISPER_TEXT
    }
    languages = range(_WHISPER_TEXT + 2, vocabulary.index("<|translate|>"))
    whisper_shapes.write(
        shape, folder, vocabulary, languages=languages, quantization=quantization, script=script
    )
    tokenizer = Tokenizer(WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="t0"))
    tokenizer.add_special_tokens(vocabulary[_WHISPER_TEXT:])
    tokenizer.decoder = _without_marks()
    tokenizer.save(str(folder / "tokenizer.json"))
    features = {
        "feature_size": shape.mel_bands,
        "sampling_rate": 16_000,
        "hop_length": 160,
        "chunk_length": 30,
        "n_fft": 400,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(features))


def _whisper_special() -> list[str]:
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    # In the vocabulary English comes first; of the others no order is needed here.
    languages = ["en", *(code for code in _LANGUAGE_CODES if code != "en")]
    tasks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    times = [f"{i * 0.02:.2f}" for i in range(1501)]
    return [f"<|{name}|>" for name in ("endoftext", "startoftranscript", *languages, *tasks, *times)]


def _without_marks() -> Any:
    """A decoder of the words " word#12", whose mark makes them unique."""
    from tokenizers import Regex, decoders

    return decoders.Sequence([decoders.Replace(Regex(r"#\d+$"), "")])


# --- the chat model -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LlamaShape:
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int


LLAMA_8B = LlamaShape(32, 4096, 14_336, 32, 8, 128_256)
LLAMA_TINY = LlamaShape(2, 64, 128, 4, 2, 512)
"""Heads of 16: the least that SGLang takes."""
SGLANG_ON_CPU: dict[str, Any] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "model_impl": "transformers",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "dtype": "float32",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "max_total_tokens": 8192,
    "mem_fraction_static": 0.05,
}
"""`engine_args` that let SGLang run without a GPU."""


def write_llama(folder: Path, shape: LlamaShape) -> None:
    """A Llama without weights, for `load_format: dummy`, and a tokenizer of which every token is a word."""
    import numpy as np
    from safetensors.numpy import save_file
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.width // shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": _CHAT_TOKENS.index("<begin>"),
        "eos_token_id": _CHAT_TOKENS.index("<end>"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    # There is nothing in it, and it has to be there: a folder without weights is an incomplete download.
    save_file({"nothing": np.zeros(1, np.float32)}, str(folder / "model.safetensors"))
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped there
        tokenizer_object=_chat_tokenizer(shape.vocabulary),
        unk_token="<unk>",
        bos_token="<begin>",
        eos_token="<end>",
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def _chat_tokenizer(size: int) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    names = [*_CHAT_TOKENS, *(f" {_word(i)}#{i}" for i in range(size - len(_CHAT_TOKENS)))]
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.decoder = _without_marks()
    return tokenizer


def _word(index: int) -> str:
    mark = "." if index % _WORDS_A_SENTENCE == 0 else "," if index % _WORDS_A_CLAUSE == 0 else ""
    return _WORDS[index % len(_WORDS)] + mark


# --- Kokoro ---------------------------------------------------------------------------------------------------------


def kokoro_config() -> dict[str, Any]:
    """Kokoro-82M's config.json, with a vocabulary of the right size."""
    symbols = ';:,.!?—…"() “”AIOQSTWYabcdefhijklmnopqrstuvwxyzɑɐɒæɔəɚɛɜɟɡɪŋɹɾʃʊʌʒʤʧˈˌːθðᵊᵻ'
    return {
        "istftnet": {
            "upsample_kernel_sizes": [20, 12],
            "upsample_rates": [10, 6],
            "gen_istft_hop_size": 5,
            "gen_istft_n_fft": 20,
            "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
            "resblock_kernel_sizes": [3, 7, 11],
            "upsample_initial_channel": 512,
        },
        "dim_in": 64,
        "dropout": 0.2,
        "hidden_dim": 512,
        "max_conv_dim": 512,
        "max_dur": 50,
        "multispeaker": True,
        "n_layer": 3,
        "n_mels": 80,
        "n_token": 178,
        "style_dim": 128,
        "text_encoder_kernel_size": 5,
        "plbert": {
            "hidden_size": 768,
            "num_attention_heads": 12,
            "intermediate_size": 2048,
            "max_position_embeddings": 512,
            "num_hidden_layers": 12,
            "dropout": 0.1,
        },
        "vocab": {symbol: index for index, symbol in enumerate(symbols, start=1)},
    }


KOKORO_TINY: Mapping[str, Any] = {
    "istftnet": {"resblock_dilation_sizes": [[1, 3, 5]], "resblock_kernel_sizes": [3]},
    "n_layer": 1,
    "plbert": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
    },
}
"""What a small one has otherwise."""
_FRAMES_A_SECOND = 40


def write_kokoro(folder: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Config, weights and the voice af_heart."""
    import torch

    config = kokoro_config()
    for key, value in (changes or {}).items():
        config[key] = {**config[key], **value} if isinstance(value, Mapping) else value
    (folder / "voices").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    # A duration is the sum of so many sigmoids. All that the state leaves out keeps its random initial weights, if the
    # names have the prefix with which kokoro loads what is there and does not ask for the rest.
    share = _FRAMES_A_SECOND / PHONEMES_A_SECOND / config["max_dur"]
    bias = torch.full((config["max_dur"],), math.log(share / (1 - share)))
    torch.save({"predictor": {"module.duration_proj.linear_layer.bias": bias}}, folder / "random.pth")
    style = torch.randn(510, 1, 256, generator=torch.Generator().manual_seed(7)) * 0.1
    torch.save(style, folder / "voices" / "af_heart.pt")
