"""Turns of live callers on scripted stages: the latency account against the caller's own clock, and the overhead.

Overhead is the time from the end of speech to the first sound that no set stage explains: not the endpointing
silence, not the scripted first token, not the scripted first audio. Transcription runs inside the silence.
"""

import argparse
import asyncio
import random
from dataclasses import dataclass

from serve_app.audio.pcm import Audio

from .application import Application, application
from .caller import STAGES, Caller, caller, latency_ms, percentile
from .command import Commands, add_command, strings

STAGE_MS = 100.0
SILENCE_MS = 500.0
PAUSE_MS = 96.0
"""turn_taking.pause_min_ms: `audio_end_ms` lies so far behind the last speech."""
FIRST_CLAUSE_MS = 1.5
"""Three tokens after the first, at the rate set here."""
FAST_TOKENS = {"llm": {"scripted": {"first_token_s": 0.1, "tokens_per_s": 2000, "answer_words": 8}}}
"""So that the first clause is there with the first token, and the answer short."""


@dataclass(frozen=True, slots=True)
class TurnMeasured:
    stages_ms: dict[str, float]
    client_total_ms: float
    """Last speech sent to first sound received, by the caller's clock."""
    output_tokens: int


async def one_turn(one: Caller, question: Audio) -> TurnMeasured:
    after = len(one.arrivals)
    one.say(question)
    stopped = await one.until_type("input_audio_buffer.speech_stopped", after=after)
    sound = await one.until_type("response.output_audio.delta", after=after)
    done = await one.until_type("response.done", after=after)
    spoken_ms = stopped.event["audio_end_ms"] - PAUSE_MS
    tokens = done.event["response"]["usage"]["output_tokens"]
    return TurnMeasured(latency_ms(done), (sound.at - one.sent_at(spoken_ms)) * 1000, tokens)


async def one_caller(url: str, questions: list[Audio], turns: int, seed: int) -> list[TurnMeasured]:
    dice = random.Random(seed)
    measured = []
    await asyncio.sleep(dice.uniform(0, 2))
    async with caller(url) as one:
        for _ in range(turns):
            measured.append(await one_turn(one, dice.choice(questions)))
            rest_s = one.player.ends_at - asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, rest_s) + dice.uniform(0.2, 1.0))
    return measured


async def all_callers(
    app: Application, questions: list[Audio], sessions: int, turns: int
) -> list[TurnMeasured]:
    async with asyncio.TaskGroup() as tasks:
        calls = [
            tasks.create_task(one_caller(app.realtime, questions, turns, seed)) for seed in range(sessions)
        ]
    return [turn for call in calls for turn in call.result()]


def add_parser(commands: Commands) -> None:
    command = add_command(commands, "turns", run, "latency account and overhead on scripted stages")
    command.add_argument("--sessions", type=int, default=10)
    command.add_argument("--turns", type=int, default=6, help="of each session")
    command.add_argument("--stt-s", type=float, default=0.1)
    command.add_argument(
        "--late", action="store_true", help="transcribe at the endpoint, not at the first silence"
    )
    command.add_argument("--drafts", type=int, default=0, help="answers begun at a pause (default: none)")


def run(args: argparse.Namespace) -> None:
    is_early = not args.late
    changes = {
        **FAST_TOKENS,
        "stt": {"scripted": {"latency_s": args.stt_s}},
        "turn_taking": {"transcribe_at_pause": is_early, "drafts_per_turn": args.drafts},
    }
    questions = list(strings(args).values())
    with application(args=changes, proxy=args.proxy) as app:
        measured = asyncio.run(all_callers(app, questions, args.sessions, args.turns))
    stt_ms = args.stt_s * 1000
    print(
        f"{args.sessions} sessions x {args.turns} turns, proxy {args.proxy}, stt {stt_ms:.0f} ms, "
        f"early transcription {is_early}, drafts {args.drafts}"
    )
    print(f"{'ms':>16} {'p50':>8} {'p90':>8} {'p99':>8} {'max':>8}")
    for stage in STAGES:
        _row(stage, [turn.stages_ms[stage] for turn in measured])
    _row("client - total", [turn.client_total_ms - turn.stages_ms["total"] for turn in measured])
    late_stt = 0.0 if is_early else stt_ms
    explained = SILENCE_MS + late_stt + (0.0 if args.drafts else 2 * STAGE_MS + FIRST_CLAUSE_MS)
    _row("beyond the set", [turn.client_total_ms - explained for turn in measured])


def _row(name: str, values: list[float]) -> None:
    shares = " ".join(f"{percentile(values, share):8.1f}" for share in (0.5, 0.9, 0.99))
    print(f"{name:>16} {shares} {max(values):8.1f}")
