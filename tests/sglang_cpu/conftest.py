"""SGLang itself, on the CPU, over a tiny model with random weights: `make test-sglang`. Skipped where it is not installed.

Every test file makes an engine of its own, which takes a minute.
"""

import importlib.util
from pathlib import Path

import pytest

from deployments.options import LlmOptions
from loadtest.bench_models import CHAT_TEMPLATE, SGLANG_ON_CPU

WINDOW = 512


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    is_missing = importlib.util.find_spec("sglang") is None
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent):
            continue
        # Importing SGLang without a GPU warns in a dozen places that are not ours.
        item.add_marker(pytest.mark.filterwarnings("ignore"))
        if is_missing:
            item.add_marker(pytest.mark.skip(reason="sglang is not in this environment: make test-sglang"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with heads of 16, the least that SGLang takes; a token a word, `w0` to `w499`."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    special = ["<unk>", "<s>", "<end>", "<system>", "<user>", "<assistant>"]
    words = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(500))])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="<end>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=WINDOW,
        bos_token_id=words["<s>"],
        eos_token_id=words["<end>"],
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[: len(special)] = (
            0  # the likeliest word has more than nothing: no greedy answer ends
        )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def options(tiny_model: Path) -> LlmOptions:
    return LlmOptions(
        engine="sglang", model=str(tiny_model), system_prompt="w1 w2 w3", engine_args=SGLANG_ON_CPU
    )
