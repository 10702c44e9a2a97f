"""A conversation as a script: a user, the engines and a listener around one `Conversation`, on a clock that is a number.

    world = World(reply="Sure, here it is.")
    world.speaks(1.0, "play something")
    world.is_silent(2.0)
    assert world.outcomes() == ["completed"]

Every step moves `now` on, carries out what the conversation wants done as a session would, and keeps every command
with its time. A frame comes every 1/32 s and all lengths are sums of powers of two, so that times are exact.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TypeVar

from serve_app.conversation.commands import (
    CancelTranscription,
    CancelWork,
    Command,
    Generate,
    InsertSilence,
    JudgeTurn,
    Play,
    ResponseDone,
    ResponseStarted,
    SpeechStarted,
    Synthesize,
    Transcribe,
)
from serve_app.conversation.conversation import Conversation
from serve_app.conversation.events import (
    AudioSent,
    CallGenerated,
    CallId,
    ChunkId,
    Event,
    Failure,
    FrameScored,
    GenerationFailed,
    GenerationFinished,
    ItemId,
    ResponseId,
    ServerVad,
    Settings,
    SpeechSynthesized,
    SynthesisFailed,
    SynthesisFinished,
    TokensGenerated,
    TranscriptFinished,
    TranscriptionFailed,
    TruncationRequested,
    TurnJudged,
    Usage,
    WordTime,
)
from serve_app.conversation.interruption import AgentState
from serve_app.conversation.parameters import Parameters
from serve_app.conversation.turn_taking import UserState

FRAME = 512
FRAME_S = 1 / 32
CHUNK_S = 1 / 16
CHUNKS_A_WORD = 4
WORD_S = CHUNKS_A_WORD * CHUNK_S
LEAD_S = 1 / 4

REPLY = "Well, that is easy. It takes about ten minutes to get there, and you can see the sea on the way."

C = TypeVar("C", bound=Command)


@dataclass(slots=True)
class Delays:
    """How long each engine takes, and how many of its next calls fail."""

    stt_s: float = 1 / 8
    opinion_s: float = 1 / 32
    first_token_s: float = 1 / 8
    token_gap_s: float = 1 / 64
    first_audio_s: float = 1 / 8
    chunk_gap_s: float = 1 / 64
    socket_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Sound:
    """What reached the listener: a chunk that sounds from `start` to `end`; `word` is said with its end."""

    item_id: ItemId
    word: str | None
    start: float
    end: float


@dataclass(slots=True)
class Listener:
    """The independent judge of what was heard: plays what it gets at once, in order, at 1x."""

    sounds: list[Sound] = field(default_factory=list)
    """Without what was thrown away unplayed."""
    received: list[Sound] = field(default_factory=list)
    plays_until: float = float("-inf")

    def receive(self, item_id: ItemId, word: str | None, duration_s: float, now: float) -> None:
        start = max(now, self.plays_until)
        self.plays_until = start + duration_s
        sound = Sound(item_id, word, start, self.plays_until)
        self.sounds.append(sound)
        self.received.append(sound)

    def stop(self, now: float) -> None:
        """Playback is stopped and its buffer thrown away."""
        self.sounds = [sound for sound in self.sounds if sound.end <= now]
        self.plays_until = min(self.plays_until, now)

    def words(self, item_id: ItemId) -> list[str]:
        """What was or will be heard, if nothing stops it."""
        return [sound.word for sound in self.sounds if sound.item_id == item_id and sound.word]

    def words_until(self, item_id: ItemId, audio_s: float) -> list[str]:
        """The words in the first `audio_s` seconds of what was received of an item, played or not."""
        words, end = [], 0.0
        for sound in self.received:
            if sound.item_id == item_id:
                end += sound.end - sound.start
                if sound.word and end <= audio_s:
                    words.append(sound.word)
        return words


class World:
    def __init__(
        self,
        *,
        vad: ServerVad | None = ServerVad(),  # noqa: B008 - frozen
        settings: Settings = Settings(),  # noqa: B008 - frozen
        parameters: Parameters = Parameters(playout_lead_s=LEAD_S),  # noqa: B008 - frozen
        delays: Delays | None = None,
        reply: str = REPLY,
    ) -> None:
        self.settings = Settings(
            instructions=settings.instructions,
            modality=settings.modality,
            turn_detection=vad,
            tools=settings.tools,
            tool_choice=settings.tool_choice,
        )
        self.parameters = parameters
        self.delays = delays or Delays()
        self.reply = reply
        self.calls: tuple[str, ...] = ()
        """Functions that the model calls after its reply, where tools are offered."""
        self.finish_reason = "stop"
        self.has_word_times = True
        self.conversation = Conversation(parameters, self.settings)
        self.now = 0.0
        self.position = 0
        self.listener = Listener()
        self.log: list[tuple[float, Command]] = []
        self.facts: list[tuple[float, Event | None, tuple[Command, ...]]] = []
        """All that the conversation was told and what it said to it; None is a tick."""
        self.stale: deque[Event] = deque(maxlen=32)
        """News that were under way when their work was cancelled: a session never delivers them."""
        self.sent_ahead: list[float] = []
        """Seconds of sound that the listener had not played yet, just after each chunk."""
        self.on_command: Callable[[Command], None] = lambda command: None
        self.forgotten = 0
        """The input before this sample is thrown away, as a session does."""
        self.failing: Counter[str] = Counter()
        self.hears: Callable[[str], str] = lambda said: said
        """What the transcriber makes of what was said."""
        self.is_failure_retryable = True
        self.opinion: float | None = None
        """How complete every pause sounds; None: no opinion comes."""
        self._said: list[tuple[int, str]] = []
        self._agenda: list[tuple[float, int, object, Event]] = []
        self._order = count()
        self._chunk_ids = count(1)
        self._call_ids = count(1)
        self._chunks: dict[ChunkId, tuple[str | None, float]] = {}
        self._playing: dict[ChunkId, Play] = {}

    # --- the user and the client ------------------------------------------------------------------------------------

    def speaks(self, seconds: float, words: str = "", *, probability: float = 0.9) -> None:
        """Speech that contains `words`, evenly spread; a cough has none."""
        frames = max(1, round(seconds / FRAME_S))
        each = frames * FRAME / max(1, len(words.split()))
        self._said += [(self.position + int((i + 0.5) * each), word) for i, word in enumerate(words.split())]
        self._hear(frames, probability)

    def is_silent(self, seconds: float) -> None:
        self._hear(max(1, round(seconds / FRAME_S)), 0.02)

    def until(self, condition: Callable[[], bool], *, within_s: float = 30.0) -> None:
        """Silence, until `condition` holds."""
        end = self.now + within_s
        while not condition():
            assert self.now < end, "it never came to that"
            self.is_silent(FRAME_S)

    def until_heard(self, words: int) -> None:
        """Silence, until the agent has said so many words of its newest answer."""
        started = len(self.all(ResponseStarted))
        self.until(
            lambda: (
                len(self.all(ResponseStarted)) >= max(1, started)
                and len(self.played(self.last(ResponseStarted).item_id)) >= words
            )
        )

    def asks(self, words: str = "what is the time") -> None:
        """A whole turn, up to where its answer is under way."""
        before = len(self.all(ResponseStarted))
        self.speaks(0.5, words)
        self.until(lambda: len(self.all(ResponseStarted)) > before)

    def truncates(self, item_id: ItemId, audio_end_ms: int) -> list[Command]:
        """As clients do it: playback of the item stops, then the server is told."""
        if self.listener.sounds and self.listener.sounds[-1].item_id == item_id:
            self.listener.stop(self.now)
        return self.tell(TruncationRequested(item_id, audio_end_ms))

    def wait(self, seconds: float) -> None:
        """Time passes and the microphone gives nothing."""
        self._run(self.now + seconds)

    def _hear(self, frames: int, probability: float) -> None:
        for _ in range(frames):
            self._run(self.now + FRAME_S)
            self.position += FRAME
            self.tell(FrameScored(FRAME, probability))

    def said_between(self, start: int, stop: int) -> list[str]:
        """The user's words in these samples."""
        return [word for position, word in self._said if start <= position < stop]

    # --- what came of it --------------------------------------------------------------------------------------------

    def all(self, kind: type[C]) -> list[C]:
        return [command for _, command in self.log if isinstance(command, kind)]

    def last(self, kind: type[C]) -> C:
        return self.all(kind)[-1]

    def only(self, kind: type[C]) -> C:
        (command,) = self.all(kind)
        return command

    def times(self, kind: type[C]) -> list[float]:
        return [at for at, command in self.log if isinstance(command, kind)]

    def outcomes(self) -> list[str]:
        return [done.outcome for done in self.all(ResponseDone)]

    def history(self) -> list[tuple[str, str]]:
        return [(item.role, item.text) for item in self.conversation.history.items()]

    def played(self, item_id: ItemId) -> list[str]:
        """The words of an item whose sound has been played to its end by now."""
        return [s.word for s in self.listener.sounds if s.item_id == item_id and s.word and s.end <= self.now]

    @property
    def agent(self) -> AgentState:
        return self.conversation.agent_state(self.now)

    @property
    def user(self) -> UserState:
        return self.conversation.user_state

    # --- the session ------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> list[Command]:
        commands = self.conversation.handle(event, self.now)
        self.facts.append((self.now, event, tuple(commands)))
        self._carry_out(commands)
        self._run(self.now)
        return commands

    def tick(self) -> list[Command]:
        commands = self.conversation.tick(self.now)
        self.facts.append((self.now, None, tuple(commands)))
        self._carry_out(commands)
        return commands

    def _run(self, until: float) -> None:
        """All that falls due up to `until`."""
        while True:
            deadline = self.conversation.deadline()
            at = min(
                self._agenda[0][0] if self._agenda else until + 1, until + 1 if deadline is None else deadline
            )
            if at > until:
                break
            self.now = max(self.now, at)
            if self._agenda and self._agenda[0][0] <= self.now:
                self._deliver()
            else:
                self.tick()
                later = self.conversation.deadline()
                assert later is None or later > self.now, "a tick at the deadline must make progress"
        self.now = until

    def _deliver(self) -> None:
        _, _, _, event = heapq.heappop(self._agenda)
        if isinstance(event, AudioSent):
            play, (word, duration_s) = self._playing.pop(event.chunk_id), self._chunks.pop(event.chunk_id)
            self.listener.receive(play.item_id, word, duration_s, self.now)
            self.sent_ahead.append(self.listener.plays_until - self.now)
        commands = self.conversation.handle(event, self.now)
        self.facts.append((self.now, event, tuple(commands)))
        self._carry_out(commands)

    def _later(self, seconds: float, key: object, event: Event) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._order), key, event))

    def _cancel(self, key: object) -> None:
        self.stale += [entry[3] for entry in self._agenda if entry[2] == key]
        self._agenda = [entry for entry in self._agenda if entry[2] != key]
        heapq.heapify(self._agenda)

    def _carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Transcribe):
                assert command.start >= self.forgotten, "asked for input that was said to be needed no more"
            self.log.append((self.now, command))
            self.on_command(command)
            self._work(command)
        self.forgotten = max(self.forgotten, self.conversation.input_needed_from)

    def _work(self, command: Command) -> None:
        match command:
            case Transcribe():
                self._transcribe(command)
            case JudgeTurn(judgement_id):
                self._cancel(JudgeTurn)
                if self.opinion is not None:
                    judged = TurnJudged(judgement_id, self.opinion)
                    self._later(self.delays.opinion_s, JudgeTurn, judged)
            case Generate():
                self._generate(command)
            case Synthesize():
                self._synthesize(command)
            case CancelTranscription(key) | CancelWork(key):
                self._cancel(key)
            case Play(response_id, _, chunk_id):
                assert not self._playing_of(response_id), "one chunk on its way at a time"
                self._playing[chunk_id] = command
                self._later(self.delays.socket_s, response_id, AudioSent(chunk_id))
            case InsertSilence(samples):
                self.position += samples
                self._later(0.0, "microphone", FrameScored(samples, 0.0))
            case SpeechStarted() if self._is_interrupting:
                self.listener.stop(self.now)

    @property
    def _is_interrupting(self) -> bool:
        vad = self.conversation.settings.turn_detection
        return vad is not None and vad.interrupt_response

    def _playing_of(self, response_id: ResponseId) -> list[Event]:
        return [e for _, _, key, e in self._agenda if key == response_id and isinstance(e, AudioSent)]

    # --- the engines ------------------------------------------------------------------------------------------------

    def _fails(self, stage: str) -> Failure | None:
        if not self.failing[stage]:
            return None
        self.failing[stage] -= 1
        return Failure(stage, "engine_failed", f"{stage} is broken", self.is_failure_retryable)

    def _transcribe(self, command: Transcribe) -> None:
        key = command.transcription_id
        if failure := self._fails("stt"):
            self._later(self.delays.stt_s, key, TranscriptionFailed(key, failure))
            return
        words = self.hears(" ".join(self.said_between(command.start, command.stop)))
        self._later(self.delays.stt_s, key, TranscriptFinished(key, words))

    def _generate(self, command: Generate) -> None:
        key, at = command.response_id, self.delays.first_token_s
        if failure := self._fails("llm"):
            self._later(at, key, GenerationFailed(key, failure))
            return
        tokens = self.reply.replace(" ", "\0 ").split("\0") if self.reply else []
        for token in tokens:
            self._later(at, key, TokensGenerated(key, token))
            at += self.delays.token_gap_s
        for name in self.calls if command.tools else ():
            call_id = CallId(f"{name}_{next(self._call_ids)}")
            self._later(at, key, CallGenerated(key, call_id, name, "{}"))
        usage = Usage(len(command.messages), len(tokens))
        self._later(at, key, GenerationFinished(key, self.finish_reason, usage))

    def _synthesize(self, command: Synthesize) -> None:
        key, segment_id, at = command.response_id, command.segment_id, self.delays.first_audio_s
        if failure := self._fails("tts"):
            self._later(at, key, SynthesisFailed(key, segment_id, failure))
            return
        place = 0
        for i, word in enumerate(command.text.split()):
            place = command.text.index(word, place)
            times = WordTime(place, place + len(word), i * WORD_S, (i + 1) * WORD_S)
            place += len(word)
            for part in range(CHUNKS_A_WORD):
                chunk_id = ChunkId(next(self._chunk_ids))
                is_last = part == CHUNKS_A_WORD - 1
                self._chunks[chunk_id] = (word if is_last else None, CHUNK_S)
                known = (times,) if part == 0 and self.has_word_times else ()
                self._later(at, key, SpeechSynthesized(key, segment_id, chunk_id, CHUNK_S, known))
                at += self.delays.chunk_gap_s
        self._later(at, key, SynthesisFinished(key, segment_id))
