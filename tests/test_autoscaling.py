"""The load of a replica is what its calls under way add up to, and replicas follow it; Serve's own code takes the policy."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig

from deployments import llm, tts
from deployments.autoscaling import (
    AUDIO_S_OWED,
    TOKENS_IN_FLIGHT,
    ByLoad,
    LoadMeter,
    prompt_tokens,
    replicas_for,
    speech_s,
)
from deployments.interfaces import ChatMessage, EngineInfo, Sampling
from deployments.options import LlmOptions, ScriptedLlm, ScriptedTts, TtsOptions


@dataclass
class Context:
    """What Serve tells a policy."""

    aggregated_metrics: dict[str, dict[str, float]] | None = None
    total_num_requests: float = 0.0
    total_queued_requests: float | None = None
    current_num_replicas: int = 1
    target_num_replicas: int = 1
    policy_state: dict[str, Any] = field(default_factory=dict)
    config: AutoscalingConfig | None = None


# --- how many -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loads", "running", "queued", "replicas"),
    [
        ([], 0, 0, 0),
        ([500.0], 2, 0, 0.5),
        ([1000.0, 1000.0, 1000.0], 6, 0, 3),
        ([3000.0, 0.0], 3, 0, 3),  # the new replica is empty: none more is wanted for that
        ([2000.0], 4, 4, 4),  # as many wait as are served: they weigh the same
        ([], 0, 5, 1),  # nobody is served yet
        ([1000.0], 0, 5, 1),  # loads are means over a while, and the calls of it have ended
    ],
)
def test_replicas_follow_the_load(loads: list[float], running: float, queued: float, replicas: float) -> None:
    assert replicas_for(loads, 1000.0, running=running, queued=queued) == replicas


def test_few_long_conversations_need_more_than_many_short_ones() -> None:
    policy = ByLoad(TOKENS_IN_FLIGHT, 16_000)
    short = Context({TOKENS_IN_FLIGHT: {"a": 40 * 200.0}}, total_num_requests=40)
    long = Context({TOKENS_IN_FLIGHT: {"a": 10 * 4000.0}}, total_num_requests=10)
    assert policy(short)[0] == 0.5
    assert policy(long)[0] == 2.5


def test_a_policy_reads_its_own_load_alone() -> None:
    metrics = {
        TOKENS_IN_FLIGHT: {"a": 9e9},
        AUDIO_S_OWED: {"a": 20.0, "b": 10.0},
        "running_requests": {"a": 7.0},
    }
    context = Context(metrics, total_num_requests=9.0, total_queued_requests=3.0)
    assert ByLoad(AUDIO_S_OWED, 10)(context)[0] == 30 * (1 + 3 / 6) / 10
    assert ByLoad(AUDIO_S_OWED, 10)(Context())[0] == 0, "no replica has reported yet"


@pytest.mark.parametrize(("load", "target"), [("tokens", 10), (TOKENS_IN_FLIGHT, 0), (AUDIO_S_OWED, -1)])
def test_a_policy_that_could_never_scale_is_refused(load: str, target: float) -> None:
    with pytest.raises(ValueError, match=r"load is|target is"):
        ByLoad(load, target)


# --- in Serve -------------------------------------------------------------------------------------------------------


def config(**changes: Any) -> AutoscalingConfig:
    policy = {
        "policy_function": "deployments.autoscaling:ByLoad",
        "policy_kwargs": {"load": AUDIO_S_OWED, "target": 10},
    }
    return AutoscalingConfig(
        **{"max_replicas": 8, "policy": policy, "upscale_delay_s": 0, "downscale_delay_s": 60} | changes
    )


def test_serve_takes_the_policy_from_a_config_and_keeps_its_delays() -> None:
    settings = config()
    wrapped = _apply_autoscaling_config(settings.policy.get_policy()(**settings.policy.policy_kwargs))
    busy = Context({AUDIO_S_OWED: {"a": 35.0}}, total_num_requests=12, config=settings)
    assert wrapped(busy)[0] == 4
    idle = Context({AUDIO_S_OWED: {"a": 5.0}}, 1, None, 4, 4, {}, settings)
    assert wrapped(idle)[0] == 4, "not before downscale_delay_s"
    assert (
        wrapped(Context({AUDIO_S_OWED: {"a": 5.0}}, 1, None, 4, 4, {}, config(downscale_delay_s=0)))[0] == 1
    )


# --- what a replica reports -----------------------------------------------------------------------------------------


def test_a_call_weighs_until_it_ends_however_it_ends() -> None:
    meter = LoadMeter()

    def broken() -> None:
        with meter.share(50) as second:
            second.add(-60)
            assert meter.total == 100, "an estimate that was too low leaves nothing owed, not less"
            second.add(5)
            assert meter.total == 105
            raise RuntimeError

    with meter.share(100) as first:
        with pytest.raises(RuntimeError):
            broken()
        first.add(1)
        assert meter.total == 101
    assert meter.total == 0


def test_what_is_estimated() -> None:
    assert prompt_tokens(["x" * 40, "y" * 8]) == 12
    assert speech_s("x" * 30, 1.0) == 2
    assert speech_s("x" * 30, 2.0) == 1
    assert speech_s("x" * 30, 0.0) == 0, "the engine refuses it, with a word"


async def test_a_language_model_reports_prompt_and_answer_while_it_generates() -> None:
    options = LlmOptions(
        engine="scripted",
        scripted=ScriptedLlm(first_token_s=0, tokens_per_s=1e6, answers=("one, two, three",)),
    )
    shell = llm.LanguageModel.func_or_class(options, EngineInfo("llm", "scripted", ""))  # type: ignore[attr-defined]
    deltas = shell.generate([ChatMessage("user", "x" * 40)], Sampling())
    seen = [await shell.record_autoscaling_stats() async for _ in deltas]
    assert seen == [{TOKENS_IN_FLIGHT: tokens} for tokens in (11, 12, 13)]
    assert await shell.record_autoscaling_stats() == {TOKENS_IN_FLIGHT: 0}


async def test_a_voice_reports_what_it_has_not_made_yet() -> None:
    options = TtsOptions(
        engine="scripted", scripted=ScriptedTts(first_audio_s=0, word_s=0.5, realtime_factor=0)
    )
    shell = tts.TextToSpeech.func_or_class(options, EngineInfo("tts", "scripted", ""))  # type: ignore[attr-defined]
    chunks = shell.synthesize("aaaa bbbb cccc dddd eeee ffffff", "any", 1.0)  # 31 characters, six words
    seen = [(await shell.record_autoscaling_stats())[AUDIO_S_OWED] async for _ in chunks]
    assert seen == pytest.approx([31 / 15 - 0.5, 31 / 15 - 1, 31 / 15 - 1.5, 31 / 15 - 2, 0, 0])
    assert await shell.record_autoscaling_stats() == {AUDIO_S_OWED: 0}
