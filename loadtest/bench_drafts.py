"""Drafts on and off over the same recordings in one run: how much sooner an answer begins, and what that costs.

Every recording is a session of its own: said as live audio, its answer let to its first sound and cancelled, and then
a typed turn, whose prompt shows what the history holds. The application's session log is replayed afterwards: the
core is deterministic, so it tells which drafts were begun, confirmed and dropped, when each first token came, and which
words belong to which draft. Against that stands what the caller received, which knows of no drafts.

- The end of speech is the recording's last frame of speech, by the detector that the server uses, on the clock of the
  caller; `first token` is taken from the log (its first sound sent is the anchor of both clocks' difference).
- A recording with an inner pause of `PAUSE_FRAMES` or more asks for wrong drafts: words that are not all.
- A trace is: sound, words, an event or a prompt that holds anything of a draft that was dropped.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from serve_app.audio.pcm import Audio
from serve_app.conversation.commands import CancelWork, Command, Generate, Play, ResponseStarted
from serve_app.conversation.events import (
    AudioSent,
    ChunkId,
    Event,
    ResponseId,
    SpeechSynthesized,
    TokensGenerated,
)
from serve_app.session.replay import from_record, replay_file

from .application import ROOT, SCRIPTED, Application, ProxyMode, application
from .bench_endpointing import heard
from .caller import Caller, caller, percentile
from .command import SHARED, Commands, add_command, sentences, strings

Engines = Literal["scripted", "pocketsphinx", "whisper-digits"]
Vad = Literal["server_vad", "semantic_vad"]
VADS: dict[Vad, dict[str, str]] = {
    "server_vad": {"type": "server_vad"},
    "semantic_vad": {"type": "semantic_vad", "eagerness": "medium"},
}
PAUSE_FRAMES = 4
"""128 ms: longer than the 96 ms at which the transcription of a pause, and so a draft, begins."""
LAST_QUESTION = "And what did I say before?"
INPUT_RATE = 16_000
_EDGE_S = 0.002
_TURN_S = 30.0
_EXPORT_S = 60.0
"""Within which Ray shows a new value of a metric; it sends them every ten seconds."""


@dataclass(frozen=True, slots=True)
class Clip:
    name: str
    audio: Audio
    """float32 at 24 kHz."""
    speech_ends_s: float
    pauses: int
    """Inner ones, of `PAUSE_FRAMES` or more."""


@dataclass(slots=True)
class Seen:
    """What the caller of one session saw."""

    session_id: str
    clip: Clip
    speech_ended_at: float
    """By the caller's clock."""
    answer_id: str
    """The response that answered the whole recording."""
    first_audio_at: float
    responses: set[str] = field(default_factory=set)
    words: dict[str, str] = field(default_factory=dict)
    """By response, all deltas joined."""
    sound_s: dict[str, float] = field(default_factory=dict)
    transcripts: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Told:
    """What the session log of the same session says."""

    generated: dict[str, str] = field(default_factory=dict)
    """By response or draft, all tokens joined."""
    started: set[str] = field(default_factory=set)
    confirmed: set[str] = field(default_factory=set)
    dropped: dict[str, int] = field(default_factory=dict)
    """Draft -> tokens in vain."""
    first_token_at: dict[str, float] = field(default_factory=dict)
    first_sent_at: dict[str, float] = field(default_factory=dict)
    played_s: dict[str, float] = field(default_factory=dict)
    prompt: tuple[tuple[str, str], ...] = ()
    """Roles and texts of the last prompt."""
    _chunks: dict[ChunkId, tuple[ResponseId, float]] = field(default_factory=dict)

    def learn(self, event: Event | None, now: float) -> None:
        match event:
            case TokensGenerated(response_id, text):
                self.first_token_at.setdefault(response_id, now)
                self.generated[response_id] = self.generated.get(response_id, "") + text
            case SpeechSynthesized(response_id, _, chunk_id, duration_s):
                self._chunks[chunk_id] = (response_id, duration_s)
            case AudioSent(chunk_id):
                self.first_sent_at.setdefault(self._chunks[chunk_id][0], now)
            case _:
                pass

    def note(self, command: Command) -> None:
        match command:
            case ResponseStarted():
                self.started.add(command.response_id)
                if command.was_drafted:
                    self.confirmed.add(command.response_id)
            case CancelWork(response_id, int(tokens)):
                self.dropped[response_id] = tokens
            case Play(response_id, _, chunk_id):
                self.played_s[response_id] = self.played_s.get(response_id, 0.0) + self._chunks[chunk_id][1]
            case Generate():
                self.prompt = tuple((message.role, message.text) for message in command.messages)
            case _:
                pass


@dataclass(frozen=True, slots=True)
class Turn:
    vad: Vad
    clip: Clip
    first_token_ms: float
    first_audio_ms: float
    """Both from the end of speech."""
    is_confirmed: bool
    drafts: int
    confirmed: int
    wasted: tuple[int, ...]
    """Tokens of each draft that was dropped."""
    traces: tuple[str, ...]


# --- the caller's side ----------------------------------------------------------------------------------------------


async def one_turn(app: Application, clip: Clip, vad: Vad) -> Seen:
    """Raises TimeoutError where no answer came."""
    async with caller(app.realtime, audio={"input": {"turn_detection": VADS[vad]}}) as one:
        spoken = one.say(clip.audio)
        await one.until_said(spoken)
        assert spoken.began_at is not None
        ended_at = spoken.began_at + clip.speech_ends_s
        sound = await one.until(
            lambda arrival: arrival.type == "response.output_audio.delta" and arrival.at > ended_at,
            within_s=_TURN_S,
        )
        answer_id = sound.event["response_id"]
        await one.client.send("response.cancel")
        await _until_done(one, answer_id)
        await one.client.ask(LAST_QUESTION)
        last = await one.until(
            lambda a: (
                a.type == "response.created" and a.event["response"]["id"] != answer_id and a.at > sound.at
            )
        )
        await one.client.send("response.cancel")
        await _until_done(one, last.event["response"]["id"])
        [session] = [a.event["session"]["id"] for a in one.arrivals if a.type == "session.created"]
        seen = Seen(session, clip, ended_at, answer_id, sound.at)
        _collect(one, seen)
        return seen


async def _until_done(one: Caller, response_id: str) -> None:
    await one.until(lambda a: a.type == "response.done" and a.event["response"]["id"] == response_id)


def _collect(one: Caller, seen: Seen) -> None:
    for arrival in one.arrivals:
        event = arrival.event
        match arrival.type:
            case "response.created":
                seen.responses.add(event["response"]["id"])
            case "response.output_audio_transcript.delta" | "response.output_text.delta":
                key = event["response_id"]
                seen.words[key] = seen.words.get(key, "") + event["delta"]
            case "response.output_audio.delta":
                key = event["response_id"]
                seen.sound_s[key] = seen.sound_s.get(key, 0.0) + len(arrival.audio) / 48_000
            case "conversation.item.input_audio_transcription.completed":
                seen.transcripts.add(event["transcript"])
            case _:
                pass


async def all_turns(app: Application, clips: Sequence[Clip], sessions: int) -> list[tuple[Vad, Seen]]:
    """So many sessions at a time; a turn without an answer is named and left out."""
    waiting: list[tuple[Vad, Clip]] = [(vad, clip) for vad in VADS for clip in clips]
    waiting.reverse()
    seen: list[tuple[Vad, Seen]] = []

    async def work() -> None:
        while waiting:
            vad, clip = waiting.pop()
            try:
                seen.append((vad, await one_turn(app, clip, vad)))
            except* TimeoutError:  # a group, since the caller's tasks end with it
                print(f"{clip.name}, {vad}: no answer", flush=True)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(sessions):
            tasks.create_task(work())
    return seen


# --- the server's side ----------------------------------------------------------------------------------------------


def told(path: Path) -> Told:
    """The session whose log lies at `path`."""
    _, *records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    result = Told()
    for record, (now, commands) in zip(records, replay_file(path), strict=True):
        _, event = from_record(record)
        result.learn(event, now)
        for command in commands:
            result.note(command)
    return result


def traces(seen: Seen, log: Told) -> list[str]:
    """What of dropped drafts is in the wire, in the sound or in the history; a correct server leaves nothing."""
    found = []
    if seen.responses != log.started or seen.responses & log.dropped.keys():
        found.append(f"responses {sorted(seen.responses ^ log.started) or sorted(seen.responses)}")
    for response_id, words in seen.words.items():
        is_own = response_id in log.started and log.generated.get(response_id, "").startswith(words)
        if not is_own:
            found.append(f"words of {response_id}: {words!r}")
    for response_id in seen.sound_s.keys() | log.played_s.keys():
        sent, played = seen.sound_s.get(response_id, 0.0), log.played_s.get(response_id, 0.0)
        if sent > played + _EDGE_S or response_id in log.dropped:
            found.append(f"sound of {response_id}: {sent:.2f} s, {played:.2f} s of it its own")
    shown = [words.strip() for words in seen.words.values()]
    for role, text in log.prompt:
        is_known = {
            "system": True,
            "user": _is_made_of(text, [*seen.transcripts, LAST_QUESTION]),
            "assistant": any(words.startswith(text.strip()) for words in shown),
        }
        if not is_known[role]:
            found.append(f"prompt: {role} {text!r}")
    if not log.prompt or not log.prompt[-1][1].endswith(LAST_QUESTION):
        found.append("the last prompt was not seen")
    return found


def _is_made_of(text: str, parts: Sequence[str]) -> bool:
    """What a user says before an answer is heard is one message: whether it is `parts` with spaces between."""
    return not text or any(
        text.startswith(part) and _is_made_of(text[len(part) :].lstrip(), parts) for part in parts if part
    )


def measured(vad: Vad, seen: Seen, log: Told) -> Turn:
    answer = seen.answer_id
    first_audio_s = seen.first_audio_at - seen.speech_ended_at
    ahead_s = log.first_sent_at[answer] - log.first_token_at[answer]
    return Turn(
        vad,
        seen.clip,
        (first_audio_s - ahead_s) * 1000,
        first_audio_s * 1000,
        answer in log.confirmed,
        len(log.confirmed) + len(log.dropped),
        len(log.confirmed),
        tuple(log.dropped.values()),
        tuple(traces(seen, log)),
    )


# --- the run --------------------------------------------------------------------------------------------------------


def clips_of(audio: Mapping[str, Audio], count: int) -> list[Clip]:
    """Half of them with inner pauses, the longest pauses first, as far as there are; said in the order of their names."""
    found = []
    for name, samples in audio.items():
        scored = heard(name, "", samples)
        found.append(Clip(name, samples, scored.last_speech / INPUT_RATE, scored.pauses(PAUSE_FRAMES)))
    paused = sorted((clip for clip in found if clip.pauses), key=lambda clip: (-clip.pauses, clip.name))
    plain = sorted((clip for clip in found if not clip.pauses), key=lambda clip: clip.name)
    taken = paused[: max(count // 2, count - len(plain))]
    return sorted(taken + plain[: count - len(taken)], key=lambda clip: clip.name)


def setup(engines: Engines, models: Path) -> tuple[Path, dict[str, Any]]:
    """The Serve config, and what is changed in it."""
    chat = {"llm": {"engine": "llama_cpp", "model": "embedded:smollm2-135m", "max_tokens": 60}}
    voice = {"tts": {"engine": "espeak", "voice": "en-us"}}
    match engines:
        case "scripted":
            # Each call another answer, so that a draft's words are known from the answer's.
            answers = [
                " ".join(f"call{call}word{word}{',' if word == 2 else ''}" for word in range(20)) + "."
                for call in range(97)
            ]
            script = {"first_token_s": 0.1, "tokens_per_s": 50, "answers": answers}
            return SCRIPTED, {"llm": {"scripted": script}}
        case "pocketsphinx":
            return ROOT / "config.yaml", {"stt": {"engine": "pocketsphinx"}, **chat, **voice}
        case "whisper-digits":
            folder = str((models / "whisper-digits-int8").resolve())
            stt = {"engine": "faster_whisper", "model": folder, "language": "en"}
            return ROOT / "config.yaml", {"stt": stt, **chat, **voice}


def one_run(
    engines: Engines, clips: Sequence[Clip], drafts: int, sessions: int, proxy: ProxyMode, models: Path
) -> tuple[list[Turn], float]:
    """The turns, and Ray's own counter of the tokens of dropped drafts."""
    config, args = setup(engines, models)
    with tempfile.TemporaryDirectory(prefix="voice-serve-log-") as folder:
        args = {**args, "turn_taking": {"drafts_per_turn": drafts}, "session_log": folder}
        with application(config, args, proxy=proxy) as app:
            seen = asyncio.run(all_turns(app, clips, sessions))
            app.until_empty()  # a log is whole when its session has ended
            logs = {path.stem: told(path) for path in Path(folder).glob("*.jsonl")}
            wasted = sum(sum(log.dropped.values()) for log in logs.values())
            counted = app.until_counted("voice_serve_draft_tokens_wasted", wasted, _EXPORT_S)
    return [measured(vad, one, logs[_log_of(one, logs)]) for vad, one in seen], counted


def _log_of(seen: Seen, logs: Mapping[str, Told]) -> str:
    [name] = [name for name in logs if name in seen.session_id]
    return name


def add_parser(commands: Commands) -> None:
    what = "answers begun ahead of the end of the turn, on and off"
    command = add_command(commands, "drafts", run, what)
    command.add_argument(
        "--engines",
        nargs="+",
        choices=("scripted", "pocketsphinx", "whisper-digits"),
        default=["scripted", "pocketsphinx", "whisper-digits"],
        help="ears; the laptop's have SmolLM2 and espeak with them (default: all)",
    )
    command.add_argument(
        "--models", type=Path, default=SHARED / "models", help="folder of the digits' Whisper"
    )
    command.add_argument("--clips", type=int, default=8, help="recordings, half of them with inner pauses")
    command.add_argument("--drafts", type=int, default=3, help="of a turn, at most, where they are on")
    command.add_argument(
        "--sessions", type=int, default=1, help="at a time (a laptop's engines share its cores: 1)"
    )


def run(args: argparse.Namespace) -> None:
    for engines in args.engines:
        clips = clips_of(strings(args) if engines == "whisper-digits" else sentences(args), args.clips)
        paused = sum(bool(clip.pauses) for clip in clips)
        print(
            f"\n{engines}: {len(clips)} recordings, {paused} with inner pauses, {args.sessions} at a time, "
            f"proxy {args.proxy}"
        )
        for limit in (0, args.drafts):
            turns, counted = one_run(engines, clips, limit, args.sessions, args.proxy, args.models)
            report(limit, turns, counted)


def report(limit: int, turns: Sequence[Turn], counted: float) -> None:
    print(
        f"{'drafts a turn':>14} {'vad':>13} {'pauses':>7} {'turns':>6}   {'to first token p50':>18} {'p95':>6}   "
        f"{'to first audio p50':>18} {'p95':>6}   begun confirmed dropped  tokens wasted"
    )
    for vad in VADS:
        for has_pauses in (False, True):
            some = [turn for turn in turns if turn.vad == vad and bool(turn.clip.pauses) == has_pauses]
            tokens, sounds = [t.first_token_ms for t in some], [t.first_audio_ms for t in some]
            print(
                f"{limit:>14} {vad:>13} {'inner' if has_pauses else 'none':>7} {len(some):6}   "
                f"{percentile(tokens, 0.5):18.0f} {percentile(tokens, 0.95):6.0f}   "
                f"{percentile(sounds, 0.5):18.0f} {percentile(sounds, 0.95):6.0f}   "
                f"{sum(t.drafts for t in some):5} {sum(t.confirmed for t in some):9} "
                f"{sum(len(t.wasted) for t in some):7} {sum(sum(t.wasted) for t in some):14}"
            )
    print(f"metric voice_serve_draft_tokens_wasted: {counted:g}")
    found = [(turn.clip.name, trace) for turn in turns for trace in turn.traces]
    print(
        f"traces of {sum(len(t.wasted) for t in turns)} dropped drafts in {len(turns)} sessions: {found or 'none'}"
    )
