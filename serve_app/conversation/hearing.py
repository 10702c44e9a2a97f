"""The user's half: where a turn begins and ends, and what was said in it.

Transcription starts at the first silence, ahead of the endpoint; if speech resumes it is dropped, if the silence holds
its text is there already. One transcription is in flight at most; turns that were committed wait for theirs in order.
Who may take the floor is decided in `conversation.py`: it calls `open_turn` when speech that wants the floor gets it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import assert_never

from .commands import (
    CancelTranscription,
    Command,
    InputCleared,
    InsertSilence,
    Item,
    JudgeTurn,
    Refused,
    SpeechStarted,
    SpeechStopped,
    Transcribe,
    TranscriptGrown,
    TurnCommitted,
)
from .endpointing import EndpointingPolicy
from .events import Failure, ItemId, JudgementId, ServerVad, Settings, TranscriptionId
from .history import History
from .parameters import Ids, Parameters
from .timeline import TurnTimeline
from .turn_taking import INPUT_RATE, TurnDetector, TurnEdge, UserState, ms_of, samples_of

MIN_COMMIT_MS = 100
"""Less audio than this cannot be committed by the client; OpenAI's figure."""
SPARE_MS = 1000
"""Of input kept before a turn may begin: a client may ask for more padding in the middle of it all."""
JUDGED_MS = 8000
"""As much sound as an opinion on the end of a turn is made of."""
REALTIME_SLACK_S = 0.25
"""A turn that came so much faster than it was spoken was not live: jitter of a network stays below."""


@dataclass(slots=True)
class Turn:
    """One stretch of the user's speech, from its start (with padding) to its commit and its transcript."""

    item_id: ItemId
    start: int
    stop: int = 0
    began: tuple[float, int] = (0.0, 0)
    """When speech was first recognised: on the wall clock and on the audio clock (samples)."""
    is_committed: bool = False
    transcript: str | None = None
    has_failed: bool = False
    """Its transcription has failed once."""
    judgement_id: JudgementId | None = None
    """Of the opinion asked for at the newest pause."""
    opinion: float | None = None
    """How complete the turn sounds, as far as that is known; None while it is spoken."""
    drafts: int = 0
    """Answers that were begun while it was still open."""
    is_excused: bool = False
    """The client has cancelled its answer."""
    interim: list[str] = field(default_factory=list)
    """The words of the last interim transcription."""
    shown: list[str] = field(default_factory=list)
    """The words that two interim transcriptions agreed on and the client was shown."""
    timeline: TurnTimeline = field(default_factory=TurnTimeline)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A transcription under way."""

    transcription_id: TranscriptionId
    turn: Turn
    is_interim: bool
    began_at: float


@dataclass(frozen=True, slots=True)
class TurnHeard:
    """A committed turn whose transcription has ended, in a text (perhaps empty) or in a failure."""

    turn: Turn
    result: str | Failure


class Hearing:
    def __init__(
        self,
        parameters: Parameters,
        settings: Settings,
        history: History,
        ids: Ids,
        emit: Callable[[Command], None],
    ) -> None:
        self._parameters = parameters
        self._history = history
        self._ids = ids
        self._emit = emit
        self._detector = TurnDetector(
            threshold=0.5, speech_min_ms=parameters.speech_min_ms, pause_min_ms=parameters.pause_min_ms
        )
        self._max_turn = int(parameters.max_turn_s * INPUT_RATE)
        self._turn: Turn | None = None
        self._committed_to = 0
        """Where the last turn ended: the next one takes nothing from before it."""
        self._in_flight: _Flight | None = None
        self._next_interim = 0
        """The position from which on another interim transcription is due."""
        self._interim_gap = parameters.interim_s
        self._waiting: deque[Turn] = deque()
        self._heard: list[TurnHeard] = []
        self._last_frame_at = 0.0
        self._last_speech_at = 0.0
        self._speech_began = (0.0, 0)
        self._endpointing = EndpointingPolicy(0)
        self._vad: ServerVad | None = None
        self.configure(settings)

    # --- what it knows ----------------------------------------------------------------------------------------------

    @property
    def user_state(self) -> UserState:
        return self._detector.state

    @property
    def has_turn(self) -> bool:
        """The user has the floor."""
        return self._turn is not None

    def hears_something(self, now: float) -> bool:
        """The newest audio is speech, though perhaps too little yet to count as such."""
        return self._detector.is_speech and now < self._last_frame_at + self._parameters.stall_s

    @property
    def open_turn_id(self) -> ItemId | None:
        return None if self._turn is None else self._turn.item_id

    @property
    def unheard(self) -> tuple[ItemId, ...]:
        """Items of committed turns whose words are not known yet, in their order."""
        flight = [self._in_flight.turn] if self._in_flight and self._in_flight.turn.is_committed else []
        return tuple(turn.item_id for turn in [*flight, *self._waiting])

    @property
    def paused_turn(self) -> Turn | None:
        """The open turn while its speech pauses and the words so far are known: perhaps all there will be."""
        turn = self._turn
        if turn is None or not turn.transcript or self._detector.state is not UserState.PAUSING:
            return None
        return turn

    @property
    def wants_floor(self) -> bool:
        """There is speech that has not been given a turn."""
        return self._turn is None and self._detector.state is UserState.SPEAKING

    @property
    def speech(self) -> int:
        """Samples of the speech under way."""
        return self._detector.speech_end - self._detector.speech_start

    @property
    def is_awaiting_words(self) -> bool:
        """A committed turn has no transcript yet."""
        return bool(self._waiting) or (self._in_flight is not None and self._in_flight.turn.is_committed)

    def excuse(self) -> None:
        """The committed turns that have no words yet need no answer of their own."""
        flight = self._in_flight
        for turn in [*self._waiting, *([flight.turn] if flight is not None else [])]:
            turn.is_excused = turn.is_committed

    @property
    def deadline(self) -> float | None:
        """When the input counts as stalled, if no frame comes before."""
        if self._vad is None or self._detector.state is UserState.SILENT:
            return None
        return self._last_frame_at + self._parameters.stall_s

    @property
    def needed_from(self) -> int:
        """The oldest sample that a transcription may still be asked of."""
        starts = [turn.start for turn in self._waiting]
        if self._in_flight is not None:
            starts.append(self._in_flight.turn.start)
        if self._vad is None:
            starts.append(self._committed_to)
        elif self._turn is not None:
            starts.append(self._turn.start)
        else:
            is_silent = self._detector.state is UserState.SILENT
            speech = self._detector.position if is_silent else self._detector.speech_start
            before = self._vad.prefix_padding_ms + self._parameters.speech_min_ms + SPARE_MS
            starts.append(max(self._committed_to, speech - samples_of(before)))
        return max(0, min(starts))

    def take_heard(self) -> list[TurnHeard]:
        heard, self._heard = self._heard, []
        return heard

    # --- settings ---------------------------------------------------------------------------------------------------

    def configure(self, settings: Settings) -> None:
        self._settings = settings
        vad = settings.turn_detection
        if vad is not None:
            self._detector.threshold = vad.threshold
            self._endpointing = EndpointingPolicy(vad.silence_duration_ms, vad.eagerness)
        elif self._vad is not None:  # from here on the client commits, beginning with the speech under way
            self._committed_to = self._turn.start if self._turn else self._detector.position
            self._forget_turn()
        self._vad = vad

    # --- audio ------------------------------------------------------------------------------------------------------

    def push(self, samples: int, probability: float, now: float) -> None:
        self._last_frame_at = now
        if self._vad is None:
            self._detector.skip(samples)
            if self._detector.position - self._committed_to >= self._max_turn:
                self._commit_buffer(now)
            return
        turn = self._turn
        delay = (
            self._endpointing.delay(turn.transcript, turn.opinion) if turn else self._endpointing.delay(None)
        )
        edge = self._detector.push(samples, probability, delay=delay)
        if self._detector.is_speech:
            self._last_speech_at = now
        if edge is not None:
            self._follow(edge, now)
        if self._turn is not None and self._detector.position - self._turn.start >= self._max_turn:
            self._end_turn(self._detector.position, now)

    def _follow(self, edge: TurnEdge, now: float) -> None:
        match edge:
            case TurnEdge.STARTED:
                self._speech_began = (now, self._detector.position)
            case TurnEdge.RESUMED:
                self._drop_draft_transcript()
            case TurnEdge.ENDED:
                if self._turn is not None:
                    self._end_turn(self._speech_stop(), now)
            case TurnEdge.PAUSED:
                if self._turn is None:  # too short for the floor, and over: the next sound does not add to it
                    self._detector.reset()
                self._ask_for_an_opinion()
            case _:
                assert_never(edge)

    def _speech_stop(self) -> int:
        """The end of the speech with a little of the silence behind it, so that no last consonant is lost."""
        return min(
            self._detector.speech_end + samples_of(self._parameters.pause_min_ms), self._detector.position
        )

    def open_turn(self) -> None:
        """Give the floor to the speech under way."""
        assert self._vad is not None
        padded = self._detector.speech_start - samples_of(self._vad.prefix_padding_ms)
        start = max(padded, self._committed_to, 0)
        self._turn = Turn(self._ids.item(), start=start, began=self._speech_began)
        self._next_interim = self._detector.speech_start + int(self._interim_gap * INPUT_RATE)
        self._emit(SpeechStarted(self._turn.item_id, ms_of(self._turn.start)))

    def _end_turn(self, stop: int, now: float) -> None:
        turn = self._turn
        assert turn is not None
        began_at, began_position = turn.began
        spoken_s = (self._detector.position - began_position) / INPUT_RATE
        turn.timeline.faster_than_realtime = now - began_at < spoken_s - REALTIME_SLACK_S
        turn.timeline.mark("last_speech", self._last_speech_at)
        self._emit(SpeechStopped(turn.item_id, ms_of(stop)))
        self._detector.reset()
        self._commit(turn, stop, now)

    def _commit(self, turn: Turn, stop: int, now: float) -> None:
        self._cancel_interim()
        turn.stop, turn.is_committed = stop, True
        turn.timeline.mark("endpoint", now)
        self._turn, self._committed_to = None, stop
        previous = self._history.append(Item(turn.item_id, "user", "", "audio"))
        self._emit(TurnCommitted(turn.item_id, previous))
        if turn.transcript is not None:
            self._heard.append(TurnHeard(turn, turn.transcript))
        elif self._in_flight is None or self._in_flight.turn is not turn:
            self._waiting.append(turn)

    def _commit_buffer(self, now: float) -> None:
        turn = Turn(self._ids.item(), start=self._committed_to)
        turn.timeline.mark("last_speech", now)
        self._commit(turn, self._detector.position, now)

    def commit(self, event_id: str | None, now: float) -> None:
        """The client ends the turn."""
        if self._vad is not None and self._turn is not None:
            self._end_turn(self._detector.position, now)
        elif self._vad is None and self._detector.position - self._committed_to >= samples_of(MIN_COMMIT_MS):
            self._commit_buffer(now)
        else:
            self._emit(
                Refused(
                    "input_audio_buffer_commit_empty",
                    f"there is no speech to commit: the buffer holds less than {MIN_COMMIT_MS} ms of it",
                    event_id=event_id,
                )
            )

    def clear(self) -> None:
        """Forget the audio that is not committed."""
        self._forget_turn()
        self._committed_to = self._detector.position
        self._emit(InputCleared())

    def insert_silence(self, now: float) -> None:
        """The input has stalled: ask for as much silence as ends the turn."""
        self._last_frame_at = now
        self._emit(InsertSilence(self._endpointing.delay(None)))

    def _forget_turn(self) -> None:
        self._drop_draft_transcript()
        self._detector.reset()
        self._turn = None

    # --- transcription ----------------------------------------------------------------------------------------------

    def pump(self, now: float) -> None:
        """Start the transcription that is wanted next, if none is in flight."""
        if self._waiting or self._wants_draft_transcript():
            self._cancel_interim()
        if self._in_flight is not None:
            return
        if self._waiting:
            self._transcribe(self._waiting.popleft(), now)
        elif self._turn is not None and self._wants_draft_transcript():
            self._turn.stop = self._speech_stop()
            self._transcribe(self._turn, now)
        elif self._turn is not None and self._wants_interim():
            self._turn.stop = self._detector.position
            self._transcribe(self._turn, now, is_interim=True)

    def _wants_draft_transcript(self) -> bool:
        return (
            self._turn is not None
            and self._detector.state is UserState.PAUSING
            and self._parameters.transcribe_at_pause
            and self._turn.transcript is None
            and not self._turn.has_failed
        )

    def _wants_interim(self) -> bool:
        is_speaking = self._detector.state is UserState.SPEAKING
        return is_speaking and self._interim_gap > 0 and self._detector.position >= self._next_interim

    def _transcribe(self, turn: Turn, now: float, *, is_interim: bool = False) -> None:
        transcription_id = self._ids.transcription()
        self._in_flight = _Flight(transcription_id, turn, is_interim, now)
        settings = self._settings
        self._emit(
            Transcribe(
                transcription_id,
                turn.start,
                turn.stop,
                settings.language,
                settings.transcription_prompt,
                is_interim,
            )
        )

    def _cancel_interim(self) -> None:
        """It must never keep a final one waiting."""
        if self._in_flight is not None and self._in_flight.is_interim:
            self._emit(CancelTranscription(self._in_flight.transcription_id))
            self._in_flight = None

    def _drop_draft_transcript(self) -> None:
        """Speech went on: what was transcribed of this turn is not all of it."""
        turn = self._turn
        if turn is None:
            return
        turn.transcript, turn.has_failed = None, False
        turn.judgement_id = turn.opinion = None
        if self._in_flight is not None and self._in_flight.turn is turn:
            self._emit(CancelTranscription(self._in_flight.transcription_id))
            self._in_flight = None

    def transcript_finished(self, transcription_id: TranscriptionId, text: str, now: float) -> None:
        flight = self._land(transcription_id)
        if flight is None:
            return
        turn = flight.turn
        if flight.is_interim:
            self._space_interims(now - flight.began_at)
            self._show_agreed(turn, text.split())
            return
        turn.timeline.cuts["transcript"] = now
        turn.transcript = text.strip()
        if turn.is_committed:
            self._heard.append(TurnHeard(turn, turn.transcript))

    def _space_interims(self, took_s: float) -> None:
        """At most half of the time goes into interim transcriptions, however slow the engine or long its queue."""
        self._interim_gap = max(self._parameters.interim_s, 2 * took_s)
        self._next_interim = self._detector.position + int((self._interim_gap - took_s) * INPUT_RATE)

    def _show_agreed(self, turn: Turn, words: list[str]) -> None:
        """LocalAgreement-2 (Liu et al. 2020): what two transcriptions in a row have in common is there to stay."""
        agreed = [
            new
            for old, new in takewhile(lambda pair: pair[0] == pair[1], zip(turn.interim, words, strict=False))
        ]
        turn.interim = words
        more = agreed[len(turn.shown) :]
        if more and agreed[: len(turn.shown)] == turn.shown:
            self._emit(TranscriptGrown(turn.item_id, " ".join(["", *more] if turn.shown else more)))
            turn.shown = agreed

    def _ask_for_an_opinion(self) -> None:
        turn = self._turn
        if turn is None or not self._parameters.judges_turns or not self._endpointing.is_adaptive:
            return
        turn.judgement_id = self._ids.judgement()
        start = max(turn.start, self._detector.position - samples_of(JUDGED_MS))
        self._emit(JudgeTurn(turn.judgement_id, start, self._detector.position))

    def turn_judged(self, judgement_id: JudgementId, completeness: float) -> None:
        turn = self._turn
        if turn is not None and turn.judgement_id == judgement_id:
            turn.opinion = completeness

    def transcription_failed(self, transcription_id: TranscriptionId, failure: Failure, now: float) -> None:
        """One more try for a committed turn; an early transcription that fails is left to the endpoint."""
        flight = self._land(transcription_id)
        if flight is None:
            return
        turn = flight.turn
        if flight.is_interim:
            self._space_interims(max(now - flight.began_at, self._interim_gap))
            return
        is_final = turn.has_failed or not failure.retryable
        turn.has_failed = True
        if turn.is_committed and is_final:
            self._heard.append(TurnHeard(turn, failure))
        elif turn.is_committed:
            self._waiting.appendleft(turn)

    def _land(self, transcription_id: TranscriptionId) -> _Flight | None:
        """The one place where news of a transcription that is no longer wanted are dropped."""
        if self._in_flight is None or self._in_flight.transcription_id != transcription_id:
            return None
        flight, self._in_flight = self._in_flight, None
        return flight

    def close(self) -> None:
        if self._in_flight is not None:
            self._emit(CancelTranscription(self._in_flight.transcription_id))
            self._in_flight = None
