"""`voice-serve talk`: a conversation from the terminal, with recordings, typed text, or the machine's microphone.

A recording is streamed as a live microphone would, at the pace of the clock, with silence behind it until the answer
has been played to its end. So the latencies that are printed are those a caller would have had.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .audio.pcm import Audio
from .audio.resampling import StreamingResampler
from .client.connection import RATE, Arrival, ClientError, RealtimeClient, session_end_alone
from .client.microphone import LiveMicrophone, Utterance
from .client.player import Player
from .client.resuming import resuming_client

DEFAULT_URL = "ws://127.0.0.1:8000/v1/realtime"
STAGES = ("endpointing", "stt", "llm_ttft", "first_segment", "tts_ttfb", "overhead", "total")
COLUMNS = {
    "endpointing": "endpoint",
    "llm_ttft": "llm",
    "first_segment": "clause",
    "tts_ttfb": "tts",
    "overhead": "send",
}
"""Stages whose full names would not fit beside each other in a terminal of 80 characters."""
OK, NO_ANSWER, NO_SESSION, INTERRUPTED = 0, 1, 2, 130
SETTLE_S = 0.3
"""The end of a recording may still be on its way through the detector: nothing is over before that."""


# --- the command ----------------------------------------------------------------------------------------------------


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", *, api_key: str | None = None
) -> argparse.ArgumentParser:
    """The `talk` command; `api_key` is the default of --api-key (the environment is read by the caller)."""
    parser = subparsers.add_parser("talk", help="talk to a running server", description=__doc__)
    parser.add_argument("--url", default=DEFAULT_URL, help="of the realtime endpoint (default: %(default)s)")
    parser.add_argument("--api-key", default=api_key, help="where the server asks for one")
    parser.add_argument(
        "--file",
        type=Path,
        action="append",
        default=[],
        help="a recording to say (WAV, FLAC, OGG); repeatable",
    )
    parser.add_argument(
        "--text", action="append", default=[], help="a typed turn, after the files; repeatable"
    )
    parser.add_argument("--out", type=Path, help="write what the listener would have heard to this WAV")
    parser.add_argument("--timeout-s", type=float, default=60, help="for one answer (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Exit code: 0 all was answered, 1 something was not, 2 no session, no file or no sound device, 130 Ctrl-C."""
    errors = Console(stderr=True)
    try:
        if args.file or args.text:
            return _run_script(args)
        # Needs PortAudio, which a server does not have.
        from .talk_live import converse

        asyncio.run(converse(args.url, args.api_key))
    except KeyboardInterrupt:
        return INTERRUPTED if args.file or args.text else OK
    except (ClientError, OSError, soundfile.SoundFileError) as error:
        errors.print(str(error), style="red", markup=False)
        return NO_SESSION
    return OK


def _run_script(args: argparse.Namespace) -> int:
    recordings = [load_recording(path) for path in args.file]
    conversation = asyncio.run(
        hold_conversation(args.url, recordings, args.text, api_key=args.api_key, timeout_s=args.timeout_s)
    )
    if args.out is not None:
        soundfile.write(args.out, conversation.heard, RATE, subtype="PCM_16")
    if args.json:
        json.dump(conversation.as_json(), sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        print_conversation(conversation, Console())
    if conversation.ended is not None:
        return NO_SESSION
    return OK if conversation.is_answered else NO_ANSWER


def load_recording(path: Path) -> Audio:
    """A recording of any rate and number of channels as float32 (n,) at 24 kHz."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    resampler = StreamingResampler(rate, RATE)
    mono = audio.mean(axis=1, dtype=np.float32)
    return np.concatenate((resampler.push(mono), resampler.flush()))


# --- what was said --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Turn:
    """One answer and what it answers."""

    question_items: tuple[str, ...]
    answer: str = ""
    heard: str | None = None
    """The words that were heard of an interrupted answer; None: all."""
    status: str = "in_progress"
    problem: str = ""
    latency_ms: dict[str, float] = field(default_factory=dict)
    audio_s: float = 0.0
    first_sound_at: float | None = None


class Dialogue:
    """Both sides' words, folded from the server's events."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        self.problems: list[str] = []
        self.questions: dict[str, str] = {}
        """Item id -> text, in the order of arrival."""
        self.dropped = 0
        """User's items in which no words were found."""
        self._user_speaks = False
        self._unanswered: dict[str, None] = {}
        self._open: dict[str, Turn] = {}

    @property
    def is_quiet(self) -> bool:
        """Nobody speaks, and nothing waits for an answer."""
        return not (self._user_speaks or self._unanswered or self._open)

    @property
    def outcomes(self) -> int:
        """How much came to an end: answers, and turns without words."""
        return self.dropped + len(self.turns) - len(self._open)

    def question(self, turn: Turn) -> str:
        return " ".join(self.questions.get(item, "") for item in turn.question_items).strip()

    def handle(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "input_audio_buffer.speech_started":
                self._user_speaks = True
            case "input_audio_buffer.speech_stopped":
                self._user_speaks = False
                self._unanswered[event["item_id"]] = None
            case "conversation.item.added":
                self._add_written(event["item"])
            case "conversation.item.input_audio_transcription.completed":
                self.questions[event["item_id"]] = event["transcript"]
            case "conversation.item.input_audio_transcription.failed":
                self.problems.append(event["error"]["message"])
                self._drop(event["item_id"])
            case "conversation.item.deleted":
                self._drop(event["item_id"])
            case "session.resumed":
                self._note_losses(event["lost_items"])
            case "error":
                self.problems.append(event["error"]["message"])
            case type_ if type_.startswith("response."):
                self._handle_response(event)
            case _:
                pass

    def _add_written(self, item: dict[str, Any]) -> None:
        text = "".join(part["text"] for part in item.get("content", []) if part["type"] == "input_text")
        if item["role"] == "user" and text:
            self.questions[item["id"]] = text
            self._unanswered[item["id"]] = None

    def _drop(self, item_id: str) -> None:
        if item_id in self._unanswered:
            del self._unanswered[item_id]
            self.dropped += 1

    def _note_losses(self, lost_items: list[str]) -> None:
        """What was being said when the connection was lost: nobody will answer it."""
        self._user_speaks = False
        for item_id in lost_items:
            self.problems.append("The connection was lost while you spoke; please say it again.")
            self._unanswered.setdefault(item_id, None)
            self._drop(item_id)

    def _handle_response(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "response.created":
                turn = Turn(tuple(self._unanswered))
                self._unanswered.clear()
                self.turns.append(turn)
                self._open[event["response"]["id"]] = turn
            case "response.output_audio_transcript.delta" | "response.output_text.delta":
                self._open[event["response_id"]].answer += event["delta"]
            case "response.done":
                response_id = event["response"]["id"]
                if response_id in self._open:  # else it was lost before this side had heard of it
                    self._end(self._open.pop(response_id), event["response"])
            case _:
                pass

    def _end(self, turn: Turn, response: dict[str, Any]) -> None:
        metadata = response.get("metadata") or {}
        turn.status = response["status"]
        turn.heard = metadata.get("heard.text")
        turn.latency_ms = {
            stage: float(metadata[f"latency.{stage}_ms"])
            for stage in STAGES
            if f"latency.{stage}_ms" in metadata
        }
        if turn.status == "failed":
            error = (response.get("status_details") or {}).get("error") or {}
            turn.problem = error.get("message") or error.get("code") or "the answer failed"

    def note_audio(self, response_id: str, duration_s: float, at: float) -> None:
        turn = self._open.get(response_id)
        if turn is None:
            return
        turn.audio_s += duration_s
        if turn.first_sound_at is None:
            turn.first_sound_at = at


# --- holding it -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Exchange:
    """One recording or typed message, and the turns that came of it."""

    turns: list[Turn]
    ended_at: float
    """When its last sample, or its text, had been sent."""

    @property
    def is_answered(self) -> bool:
        return any(
            turn.answer and turn.status in ("completed", "incomplete", "cancelled") for turn in self.turns
        )


@dataclass(slots=True)
class Conversation:
    dialogue: Dialogue
    exchanges: list[Exchange]
    heard: np.ndarray[Any, np.dtype[np.int16]]
    asked: int
    ended: ClientError | None
    """Why the session ended before all was asked."""
    resumed: int = 0
    """How often the connection was lost and the session went on."""

    @property
    def problems(self) -> list[str]:
        return self.dialogue.problems + ([str(self.ended)] if self.ended is not None else [])

    @property
    def is_answered(self) -> bool:
        return len(self.exchanges) == self.asked and all(exchange.is_answered for exchange in self.exchanges)

    def as_json(self) -> dict[str, Any]:
        turns = [self._turn(turn, exchange) for exchange in self.exchanges for turn in exchange.turns]
        told = {"answered": self.is_answered, "turns": turns, "problems": self.problems}
        return told | ({"resumed": self.resumed} if self.resumed else {})

    def _turn(self, turn: Turn, exchange: Exchange) -> dict[str, Any]:
        return {
            "question": self.dialogue.question(turn),
            "answer": turn.answer,
            "heard": turn.heard,
            "status": turn.status,
            "problem": turn.problem,
            "audio_s": round(turn.audio_s, 3),
            "latency_ms": turn.latency_ms,
            "first_sound_after_end_ms": first_sound_ms(turn, exchange),
        }


def first_sound_ms(turn: Turn, exchange: Exchange) -> float | None:
    """By this client's own clock: from the end of the recording (silence at its end included) to the first audio."""
    if turn.first_sound_at is None:
        return None
    return round((turn.first_sound_at - exchange.ended_at) * 1000, 1)


class _Script:
    """The asking side: says one thing after another, and waits for each answer to be played."""

    def __init__(self, client: RealtimeClient, player: Player, timeout_s: float) -> None:
        self.dialogue = Dialogue()
        self.player = player
        self.exchanges: list[Exchange] = []
        self._client = client
        self._microphone = LiveMicrophone(client)
        self._timeout_s = timeout_s
        self._news = asyncio.Event()

    async def run(self, recordings: Sequence[Audio], texts: Sequence[str]) -> None:
        """Raises SessionEnded when the server ends it before all was asked."""
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(self._listen(), name="talk-listen")
            speaking = (
                tasks.create_task(self._microphone.run(), name="talk-microphone") if recordings else None
            )
            for recording in recordings:
                await self._exchange(self._microphone.say(recording))
            for text in texts:
                await self._exchange(text)
            listening.cancel()
            if speaking is not None:
                speaking.cancel()

    async def _listen(self) -> None:
        async for arrival in self._client:
            self.dialogue.handle(arrival.event)
            stopped = self.player.handle(arrival)
            if stopped is not None:
                await self._client.truncate(stopped.item_id, stopped.played_s)
            if arrival.type == "response.output_audio.delta":
                self._note_audio(arrival)
            self._news.set()

    def _note_audio(self, arrival: Arrival) -> None:
        duration_s = self.player.arrivals[-1].duration_s
        self.dialogue.note_audio(arrival.event["response_id"], duration_s, arrival.at)

    async def _exchange(self, said: Utterance | str) -> None:
        before = len(self.dialogue.turns), self.dialogue.outcomes
        if isinstance(said, Utterance):
            await self._microphone.until_said(said)
        else:
            await self._client.ask(said)
        exchange = Exchange([], monotonic())
        self.exchanges.append(exchange)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._until_over(before[1])
        except TimeoutError:
            self.dialogue.problems.append(f"No answer within {self._timeout_s:g} s.")
        finally:
            exchange.turns = self.dialogue.turns[before[0] :]

    async def _until_over(self, outcomes: int) -> None:
        await asyncio.sleep(SETTLE_S)
        while True:
            self._news.clear()
            if self.dialogue.is_quiet and self.dialogue.outcomes > outcomes:
                if not self.player.is_playing(monotonic()):
                    return
                await asyncio.sleep(max(0.01, self.player.ends_at - monotonic()))
            else:
                await self._news.wait()


async def hold_conversation(
    url: str,
    recordings: Sequence[Audio],
    texts: Sequence[str],
    *,
    api_key: str | None = None,
    timeout_s: float = 60,
) -> Conversation:
    """Say all that, one after another, in one session, which outlives a lost connection. Raises NotConnected."""
    player = Player()
    notes = Console(stderr=True)
    opening = resuming_client(
        url,
        api_key=api_key,
        stop=lambda: player.flush(monotonic()),
        on_news=lambda news: notes.print(news, style="dim", markup=False),
    )
    async with opening as client:
        script = _Script(client, player, timeout_s)
        ended: ClientError | None = None
        try:
            with session_end_alone():
                await script.run(recordings, texts)
        except ClientError as early:
            ended = early
        heard = player.heard(monotonic())
    asked = len(recordings) + len(texts)
    return Conversation(script.dialogue, script.exchanges, heard, asked, ended, client.resumed)


# --- telling it -----------------------------------------------------------------------------------------------------


def print_conversation(conversation: Conversation, console: Console) -> None:
    for exchange in conversation.exchanges:
        for turn in exchange.turns:
            _print_turn(conversation.dialogue, turn, console)
    table = latency_table(conversation)
    if table.row_count > 0:
        console.print(table)
    for problem in conversation.problems:
        console.print(problem, style="red", markup=False)
    if not conversation.is_answered and not conversation.problems:
        console.print("There was no answer.", style="red")


def _print_turn(dialogue: Dialogue, turn: Turn, console: Console) -> None:
    _print_words("you", dialogue.question(turn) or "(no words)", console)
    _print_words("agent", turn.answer or "(nothing)", console)
    if turn.heard is not None:
        console.print(f"      interrupted; heard: {turn.heard or '(nothing)'}", style="dim", markup=False)
    if turn.problem:
        console.print(f"      {turn.problem}", style="red", markup=False)
    console.print()


def _print_words(who: str, words: str, console: Console) -> None:
    console.print(Text.assemble((f"{who:<5}", "bold"), " ", words))


def latency_table(conversation: Conversation) -> Table:
    """Milliseconds, a row a turn: the server's account, then the client's own measure."""
    table = Table(title="ms from the end of speech to the first sound", title_justify="left")
    table.add_column("turn")
    for stage in STAGES:
        table.add_column(COLUMNS.get(stage, stage), justify="right")
    table.add_column("after file", justify="right")
    number = 0
    for exchange in conversation.exchanges:
        for turn in exchange.turns:
            number += 1
            stages = [
                f"{turn.latency_ms[stage]:.0f}" if stage in turn.latency_ms else "-" for stage in STAGES
            ]
            measured = first_sound_ms(turn, exchange)
            table.add_row(str(number), *stages, "-" if measured is None else f"{measured:.0f}")
    return table
