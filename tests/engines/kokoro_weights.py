"""A folder of Kokoro weights for tests: the real architecture and real voices, smaller and random.

What it speaks is noise of about the right length, so it proves the plumbing: phonemes, times, chunks, cancelling.
"""

import atexit
import json
import shutil
import warnings
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LETTERS = "AIOQSWYabcdefhijklmnopqrstuvwxyzæçðøŋœɐɑɒɔəɖɛɜɟɡɣɪɲɳɹɽɾʁʂʃʈʊʋʌʎʒʔʝʣʤʦʧʰˈˌː\u0303βθᵊᵻT"
SEED = 5
PUNCTUATION = ';:,.!?—…"“”() '


def config() -> dict[str, Any]:
    """Kokoro-82M's config.json with fewer and narrower layers, and at most 4 frames (0.1 s) a phoneme."""
    symbols = dict.fromkeys(PUNCTUATION + LETTERS)
    return {
        "istftnet": {
            "upsample_kernel_sizes": [20, 12],
            "upsample_rates": [10, 6],
            "gen_istft_hop_size": 5,
            "gen_istft_n_fft": 20,
            "resblock_dilation_sizes": [[1, 3, 5]],
            "resblock_kernel_sizes": [3],
            "upsample_initial_channel": 512,
        },
        "dim_in": 64,
        "dropout": 0.2,
        "hidden_dim": 512,
        "max_dur": 4,
        "n_layer": 1,
        "n_mels": 80,
        "n_token": 178,
        "style_dim": 128,
        "text_encoder_kernel_size": 5,
        "plbert": {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "max_position_embeddings": 512,
            "num_hidden_layers": 1,
            "dropout": 0.1,
        },
        "vocab": {symbol: index for index, symbol in enumerate(symbols, start=1)},
    }


VOICES = ("af_heart", "bf_emma", "ef_dora", "ff_siwis", "hf_alpha", "if_sara", "pf_dora", "zf_xiaobei")


def write(folder: Path, voices: Path) -> None:
    """Writes config, weights and `VOICES` (all the same tensor) into `folder`; the same weights every time."""
    import torch
    from kokoro import KModel

    (folder / "voices").mkdir(parents=True, exist_ok=True)
    settings, weights = folder / "config.json", folder / "kokoro-test.pth"
    settings.write_text(json.dumps(config()), encoding="utf-8")
    torch.save({}, weights)  # every part of the model keeps its initial weights
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Kokoro's code is older than torch's
        torch.manual_seed(SEED)
        model = KModel("hexgrad/Kokoro-82M", str(settings), str(weights))
    torch.save({name: part.state_dict() for name, part in model.named_children()}, weights)
    for voice in VOICES:
        shutil.copy(voices / "af_heart.pt", folder / "voices" / f"{voice}.pt")


@cache
def shared(voices: Path) -> Path:
    """Such a folder, written once in a test run, and with it the ONNX export that the first engine makes (20 s)."""
    folder = TemporaryDirectory(prefix="voice-serve-kokoro-")
    atexit.register(folder.cleanup)
    write(Path(folder.name), voices)
    return Path(folder.name)
