"""How many replicas a stage needs, where the number of its calls does not say.

A call of the language model holds anything from a greeting to twenty minutes of talk in the GPU's memory; a call of the
voice is a clause of three words or a page of REST, and nearly done or not begun. So their replicas report what they are
loaded with (`LoadMeter`: tokens in flight, seconds of audio owed) through Serve's `record_autoscaling_stats`, and
`ByLoad`, named as `policy_function` in a Serve config, keeps each replica at a set amount of it. For the ingress (a
session is one call, all its life) and for transcription (an utterance is one short call) calls are the right measure.

Serve sends this module to its controller by value, and tries it in whatever process reads a config: it may import the
standard library only.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

TOKENS_IN_FLIGHT = "tokens_in_flight"
"""Of a LanguageModel: prompt and answer, of every conversation that is generated for."""
AUDIO_S_OWED = "audio_s_owed"
"""Of a TextToSpeech: seconds of speech that were asked for and are not made yet."""

CHARACTERS_PER_TOKEN = 4.0
"""English text in the vocabularies of Llama and Qwen; the tokens themselves are known to the engine alone."""
CHARACTERS_PER_SECOND = 15.0
"""Of speech at speed 1: 160 words a minute, 5.6 characters each with the space."""


class LoadMeter:
    """What the calls under way add up to."""

    def __init__(self) -> None:
        self.total = 0.0

    @contextmanager
    def share(self, amount: float) -> Iterator["Share"]:
        """A call's share of the load, from its first `amount` to its end, however it ends."""
        share = Share(self)
        share.add(amount)
        try:
            yield share
        finally:
            share.add(-share.amount)


class Share:
    def __init__(self, meter: LoadMeter) -> None:
        self._meter = meter
        self.amount = 0.0

    def add(self, amount: float) -> None:
        """More of it, or less: never below nothing, since what a call will take is an estimate."""
        amount = max(amount, -self.amount)
        self.amount += amount
        self._meter.total += amount


def prompt_tokens(texts: Collection[str]) -> float:
    return sum(map(len, texts)) / CHARACTERS_PER_TOKEN


def speech_s(text: str, speed: float) -> float:
    """About how long `text` will sound; a speed that no engine takes asks for nothing."""
    return len(text) / CHARACTERS_PER_SECOND / speed if speed > 0 else 0.0


def replicas_for(loads: Collection[float], target: float, *, running: float, queued: float) -> float:
    """How many replicas keep each at `target`, not rounded: Serve rounds up, and applies delays and bounds.

    `loads`: of each replica that has reported; one that has just started counts as empty. `running`, `queued`: calls
    that replicas hold, and calls that wait for one. Who waits has reported to no replica and weighs as much as those
    who do not wait; where nobody is served yet, who waits needs one replica.
    """
    load = sum(loads)
    if not load or not running:
        return max(load / target, 1.0 if queued else 0.0)
    return load * (1 + queued / running) / target


class AutoscalingContext(Protocol):
    """What is used of ray.serve.config.AutoscalingContext. Its numbers are means over `look_back_period_s`."""

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None: ...
    @property
    def total_num_requests(self) -> float: ...
    @property
    def total_queued_requests(self) -> float | None: ...


class ByLoad:
    """An `autoscaling_config.policy` of a Serve config:

    policy: {policy_function: "deployments.autoscaling:ByLoad", policy_kwargs: {load: audio_s_owed, target: 10}}
    """

    def __init__(self, load: str, target: float) -> None:
        if load not in (TOKENS_IN_FLIGHT, AUDIO_S_OWED):
            raise ValueError(f"load is {TOKENS_IN_FLIGHT} or {AUDIO_S_OWED}, not {load!r}")
        if not target > 0:
            raise ValueError(f"target is positive, not {target}")
        self._load = load
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        loads = (context.aggregated_metrics or {}).get(self._load, {})
        queued = context.total_queued_requests or 0.0
        running = max(0.0, context.total_num_requests - queued)
        return replicas_for(loads.values(), self._target, running=running, queued=queued), {}
