"""What is decided about a short window, without a model; with one it is in test_faster_whisper.py."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deployments.engines.faster_whisper_windows import (
    Decoded,
    Utterance,
    Verdict,
    WindowDecoder,
    is_loop,
    is_nothing,
    window_for,
)

RATE = 16_000


@pytest.mark.parametrize(
    ("samples", "window_s"),
    [
        (0, 10),
        (8 * RATE, 10),
        (8 * RATE + 1, 15),
        (13 * RATE, 15),
        (13 * RATE + 1, 20),
        (18 * RATE, 20),
        (18 * RATE + 1, 30),
        (30 * RATE, 30),
        (30 * RATE + 1, None),
    ],
)
def test_a_window_has_room_for_the_utterance_and_2_s(samples: int, window_s: int | None) -> None:
    assert window_for(samples) == window_s


def decoded(text: str, *, sure: float = -0.2, silent: float = 0.1, is_cut: bool = False) -> Decoded:
    return Decoded(text, "en", sure, silent, is_cut)


@pytest.mark.parametrize(
    ("heard", "verdict"),
    [
        (decoded("Ten of clubs."), Verdict.SPEECH),
        (decoded("Thank you."), Verdict.SPEECH),
        (decoded("Thank you.", silent=0.7), Verdict.NOTHING),
        (decoded(" Thanks for watching!", silent=0.7), Verdict.NOTHING),
        (decoded("Ten of clubs.", silent=0.7), Verdict.SPEECH),
        (decoded("Ten of clubs.", silent=0.7, sure=-1.2), Verdict.NOTHING),
        (decoded("", silent=0.7), Verdict.NOTHING),
        (decoded(""), Verdict.DOUBTFUL),
        (decoded("Ten of clubs.", sure=-1.2), Verdict.DOUBTFUL),
        (decoded("Ten of clubs.", is_cut=True), Verdict.DOUBTFUL),
        (decoded("I'm going to be there. " * 12), Verdict.DOUBTFUL),
        (decoded("Ten of clubs.", sure=-math.inf), Verdict.DOUBTFUL),
    ],
)
def test_what_whisper_heard_is_kept_dropped_or_decoded_again(heard: Decoded, verdict: Verdict) -> None:
    assert heard.verdict is verdict


@pytest.mark.parametrize(
    "text", ["ご視聴ありがとうございました。", "Untertitel der Amara.org-Community", "BYE-BYE!"]
)
def test_what_whisper_says_to_noise_is_known_however_it_is_written(text: str) -> None:
    assert is_nothing(text, -0.1, 0.61)
    assert not is_nothing(text, -0.1, 0.6)


def test_people_may_repeat_themselves() -> None:
    assert not is_loop("No, no, no, no. No!")
    assert is_loop("no " * 60)


class Whisper:
    """A multilingual model that hears German in what is loud and English in what is not."""

    is_multilingual = True
    device = "cpu"

    def __init__(self) -> None:
        self.model = self
        self.hf_tokenizer = SimpleNamespace(
            token_to_id=lambda token: 1000 + sum(map(ord, token)),
            encode=lambda text, add_special_tokens: SimpleNamespace(ids=[len(text)]),
            decode=lambda tokens: " ".join(map(str, tokens)),
        )
        self.prompts: list[Any] = []
        self.max_length = 0

    def feature_extractor(self, audio: Any) -> Any:
        return np.full((80, len(audio) // 160 + 1), np.abs(audio).max(initial=0.0), np.float32)

    def encode(self, features: Any) -> Any:
        return features

    def detect_language(self, encoded: Any) -> Any:
        loud = np.asarray(encoded).max(axis=(1, 2)) > 0.5
        return [[("<|de|>" if each else "<|en|>", 0.9), ("<|fr|>", 0.1)] for each in loud]

    def get_prompt(self, tokenizer: Any, previous: list[int], *, without_timestamps: bool) -> list[int]:
        assert without_timestamps
        self.prompts.append(tokenizer.language_code)
        return [*previous, 1, 2, 3, 4]

    def generate(self, encoded: Any, prompts: Any, *, max_length: int, **options: Any) -> Any:
        self.max_length = max_length
        return [
            SimpleNamespace(sequences_ids=[[5] * tokens], scores=[score], no_speech_prob=0.0)
            for tokens, score in zip((40, 0), (-0.5, math.nan), strict=False)
        ]


def test_a_multilingual_model_finds_the_language_in_the_encoding_that_is_there() -> None:
    whisper = Whisper()
    loud, quiet = np.full(RATE, 0.9, np.float32), np.full(RATE, 0.1, np.float32)
    utterances = [Utterance(loud, None), Utterance(quiet, None)]
    heard = WindowDecoder(whisper).decode(utterances, 10, is_wanted=lambda _: True)
    assert [each.language for each in heard if each] == ["de", "en"]
    heard = WindowDecoder(whisper).decode(
        [Utterance(loud, "fr"), utterances[1]], 10, is_wanted=lambda _: True
    )
    assert [each.language for each in heard if each] == ["fr", "en"]
    assert whisper.prompts[2:] == ["fr", "en"]


def test_a_text_longer_than_anybody_speaks_is_cut_and_none_has_no_probability_that_is_no_number() -> None:
    whisper = Whisper()
    # 0.4 s: 32 + 7 tokens; 3 s: 80.
    utterances = [Utterance(np.ones(seconds, np.float32), "en") for seconds in (RATE * 4 // 10, RATE * 3)]
    cut, empty = WindowDecoder(whisper).decode(utterances, 10, is_wanted=lambda _: True)
    assert cut
    assert empty
    assert (cut.is_cut, len(cut.text.split())) == (True, 39)
    assert cut.log_probability == pytest.approx(-0.5 * 40 / 41)
    assert (empty.is_cut, empty.text, empty.log_probability) == (False, "", 0.0)
    assert whisper.max_length == 160, "CTranslate2 gives half of it to the text"


def test_a_gpu_encodes_all_at_once() -> None:
    whisper = Whisper()
    whisper.device = "cuda"
    batches: list[int] = []
    whisper.encode = lambda features: (batches.append(features.shape[0]), features)[1]  # type: ignore[method-assign]
    utterances = [Utterance(np.ones(RATE, np.float32), "en")] * 2
    assert len(WindowDecoder(whisper).decode(utterances, 15, is_wanted=lambda _: True)) == 2
    assert batches == [2]


def test_the_margin_is_filled_as_faster_whisper_fills_its_30_s() -> None:
    features = WindowDecoder(Whisper()).features(np.ones(3 * RATE, np.float32), 10)
    assert features.shape == (80, 1000)
    assert (features[:, :300] == 1.0).all()
    assert not features[:, 300:].any()


def test_a_context_keeps_its_end_where_it_is_too_long() -> None:
    whisper = Whisper()
    whisper.hf_tokenizer.encode = lambda text, add_special_tokens: SimpleNamespace(ids=list(range(500)))
    context = WindowDecoder(whisper).context("so many words")
    assert (len(context), context[-1]) == (223, 499)
    assert WindowDecoder(whisper).context("  ") == WindowDecoder(whisper).context(None) == ()
