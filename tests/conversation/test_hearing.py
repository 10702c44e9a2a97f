from collections.abc import Callable

import pytest

from serve_app.conversation.commands import (
    CancelTranscription,
    Command,
    InputCleared,
    InsertSilence,
    Refused,
    SpeechStarted,
    SpeechStopped,
    Transcribe,
    TurnCommitted,
)
from serve_app.conversation.events import Failure, ServerVad, Settings, TranscriptionId
from serve_app.conversation.hearing import Hearing, TurnHeard
from serve_app.conversation.history import History
from serve_app.conversation.parameters import Ids, Parameters
from serve_app.conversation.turn_taking import UserState

FRAME = 512
FRAME_S = FRAME / 16000
BROKEN = Failure("stt", "engine_failed", "broken")
VAD = ServerVad()


class Ears:
    """A `Hearing` that gets every floor it wants."""

    def __init__(self, vad: ServerVad | None = VAD, *, gives_floor: bool = True, **parameters: float) -> None:
        self.out: list[Command] = []
        self.history = History()
        self.hearing = Hearing(
            Parameters(**parameters), Settings(turn_detection=vad), self.history, Ids("0"), self.out.append
        )
        self.gives_floor = gives_floor
        self.now = 100.0

    def speech(self, frames: int) -> list[Command]:
        return self._frames(frames, 0.9)

    def silence(self, frames: int) -> list[Command]:
        return self._frames(frames, 0.0)

    def _frames(self, frames: int, probability: float) -> list[Command]:
        def hear() -> None:
            for _ in range(frames):
                self.now += FRAME_S
                self.hearing.push(FRAME, probability, self.now)
                if self.gives_floor and self.hearing.wants_floor:
                    self.hearing.open_turn()
                self.hearing.pump(0.0)

        return self.does(hear)

    def configure(self, vad: ServerVad | None) -> None:
        self.hearing.configure(Settings(turn_detection=vad))

    def commit(self) -> list[Command]:
        return self.does(lambda: self.hearing.commit("event_1", self.now))

    def answer(self, text: str | Failure, *, transcription_id: int | None = None) -> list[TurnHeard]:
        """The transcription asked for last, or another, ends; returns the turns that are thereby known."""
        key = self.transcribing if transcription_id is None else TranscriptionId(transcription_id)
        if isinstance(text, Failure):
            self.hearing.transcription_failed(key, text, 0.0)
        else:
            self.hearing.transcript_finished(key, text, self.now)
        self.hearing.pump(0.0)
        return self.hearing.take_heard()

    @property
    def transcribing(self) -> TranscriptionId:
        return [c.transcription_id for c in self.out if isinstance(c, Transcribe)][-1]

    def does(self, act: Callable[[], None]) -> list[Command]:
        before = len(self.out)
        act()
        return self.out[before:]


def kinds(commands: list[Command]) -> list[type]:
    return [type(command) for command in commands]


def samples(ms: int) -> int:
    return ms * 16


# --- turns ----------------------------------------------------------------------------------------------------------


def test_a_turn_begins_with_its_padding_and_ends_a_little_behind_its_speech() -> None:
    ears = Ears()
    ears.silence(50)
    assert ears.speech(20) == [SpeechStarted("item_0_1", 1600 - 300)]
    assert ears.hearing.has_turn
    *_, stopped, committed = ears.silence(16)
    assert stopped == SpeechStopped("item_0_1", 1600 + 20 * 32 + 96)
    assert committed == TurnCommitted("item_0_1", None)
    assert ears.history.get("item_0_1").text == ""
    assert not ears.hearing.has_turn


def test_the_padding_takes_nothing_from_the_turn_before() -> None:
    ears = Ears()
    ears.speech(10)
    ears.silence(16)
    assert ears.answer("one")
    ears.speech(2)
    start = next(c.start for c in ears.silence(16) if isinstance(c, Transcribe))
    assert start == 26 * FRAME - samples(300)
    ears.answer("two")
    end = ears.out[-2].audio_end_ms
    ears.configure(ServerVad(prefix_padding_ms=2000))
    assert ears.speech(2) == [SpeechStarted("item_0_3", end)]


def test_a_sound_too_short_for_the_floor_is_forgotten_with_the_pause_behind_it() -> None:
    ears = Ears(gives_floor=False)
    ears.speech(2)
    assert ears.hearing.wants_floor
    ears.silence(3)
    assert not ears.hearing.wants_floor
    ears.speech(2)
    assert ears.hearing.speech == 2 * FRAME, "the second cough does not add to the first"
    assert ears.out == []


def test_speech_that_never_got_the_floor_ends_without_a_turn() -> None:
    ears = Ears(ServerVad(silence_duration_ms=32), gives_floor=False)
    ears.speech(5)
    ears.silence(1)
    assert ears.hearing.user_state is UserState.SILENT
    assert ears.out == []


def test_a_turn_is_cut_at_its_longest_and_goes_on_as_the_next_without_a_gap() -> None:
    ears = Ears(max_turn_s=2.0)
    ears.speech(200)
    starts = [c.start for c in ears.out if isinstance(c, Transcribe)]
    assert starts == [0], "one transcription at a time"
    for word in ("one", "two", "three"):
        ears.answer(word)
    spans = [(c.start, c.stop) for c in ears.out if isinstance(c, Transcribe)]
    assert [b.stop for b in ears.out if isinstance(b, Transcribe)][:2] == [a for a, _ in spans][1:]
    assert all(stop - start <= 2 * 16000 + FRAME for start, stop in spans)
    assert len(spans) == 3


# --- transcription ahead of the endpoint ----------------------------------------------------------------------------


def test_transcription_begins_at_the_first_silence() -> None:
    ears = Ears()
    ears.speech(10)
    assert ears.silence(2) == []
    assert ears.silence(1) == [Transcribe(1, 0, 13 * FRAME, None, None)]
    assert ears.silence(5) == [], "once"


def test_a_transcript_known_before_the_endpoint_is_heard_with_the_endpoint() -> None:
    ears = Ears()
    ears.speech(10)
    ears.silence(3)
    assert ears.answer(" hello ") == []
    assert kinds(ears.silence(13)) == [SpeechStopped, TurnCommitted]
    (heard,) = ears.hearing.take_heard()
    assert (heard.result, heard.turn.item_id) == ("hello", "item_0_1")
    assert ears.hearing.take_heard() == []


def test_an_endpoint_ahead_of_the_transcript_waits_for_it() -> None:
    ears = Ears()
    ears.speech(10)
    assert kinds(ears.silence(16)) == [Transcribe, SpeechStopped, TurnCommitted]
    assert ears.hearing.is_awaiting_words
    (heard,) = ears.answer("hello")
    assert heard.result == "hello"
    assert not ears.hearing.is_awaiting_words


def test_resumed_speech_cancels_the_early_transcription() -> None:
    ears = Ears()
    ears.speech(10)
    ears.silence(5)
    assert ears.speech(1) == [CancelTranscription(1)]
    assert ears.silence(3) == [Transcribe(2, 0, (10 + 5 + 1 + 3) * FRAME, None, None)]
    ears.silence(13)
    assert ears.answer("half of it", transcription_id=1) == [], "late news"
    (heard,) = ears.answer("all of it")
    assert heard.result == "all of it"


def test_resumed_speech_forgets_an_early_transcript() -> None:
    ears = Ears()
    ears.speech(10)
    ears.silence(5)
    ears.answer("half of it")
    assert ears.speech(10) == [], "nothing is in flight any more"
    assert Transcribe in kinds(ears.silence(16))
    (heard,) = ears.answer("all of it")
    assert heard.result == "all of it"


def test_transcription_can_wait_for_the_endpoint() -> None:
    ears = Ears(transcribe_at_pause=False)
    ears.speech(10)
    assert ears.silence(15) == []
    assert kinds(ears.silence(1)) == [SpeechStopped, TurnCommitted, Transcribe]


def test_turns_wait_in_order_for_the_one_transcription_that_may_be_in_flight() -> None:
    ears = Ears()
    ears.speech(10)
    ears.silence(16)
    ears.speech(10)
    assert Transcribe not in kinds(ears.silence(16))
    (first,) = ears.answer("one")
    (second,) = ears.answer("two")
    assert [(h.turn.item_id, h.result) for h in (first, second)] == [("item_0_1", "one"), ("item_0_2", "two")]


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_failed_transcription_is_tried_once_more() -> None:
    ears = Ears()
    ears.speech(10)
    ears.silence(16)
    assert ears.answer(BROKEN) == []
    assert ears.hearing.is_awaiting_words
    assert ears.transcribing == 2
    (heard,) = ears.answer(BROKEN)
    assert heard.result == BROKEN
    assert not ears.hearing.is_awaiting_words


def test_a_failure_that_cannot_pass_is_final() -> None:
    ears = Ears()
    ears.speech(10)
    ears.silence(16)
    refused = Failure("stt", "bad_request", "no", retryable=False)
    (heard,) = ears.answer(refused)
    assert heard.result == refused


def test_an_early_transcription_that_fails_is_left_to_the_endpoint() -> None:
    ears = Ears()
    ears.speech(10)
    ears.silence(5)
    assert ears.answer(BROKEN) == []
    assert ears.silence(5) == []
    assert kinds(ears.silence(6)) == [SpeechStopped, TurnCommitted, Transcribe]
    (heard,) = ears.answer(BROKEN)
    assert heard.result == BROKEN, "two tries in all"


def test_resumed_speech_is_a_new_try() -> None:
    ears = Ears()
    ears.speech(10)
    ears.silence(5)
    ears.answer(BROKEN)
    ears.speech(5)
    assert kinds(ears.silence(3)) == [Transcribe]


def test_news_of_an_unknown_transcription_changes_nothing() -> None:
    ears = Ears()
    assert ears.answer("hello", transcription_id=99) == []
    assert ears.answer(BROKEN, transcription_id=99) == []
    assert ears.out == []


# --- the client's word ----------------------------------------------------------------------------------------------


def test_the_client_may_end_a_turn_early() -> None:
    ears = Ears()
    ears.speech(10)
    assert kinds(ears.commit()) == [SpeechStopped, TurnCommitted]
    assert ears.hearing.user_state is UserState.SILENT
    ears.hearing.pump(0.0)
    assert ears.out[-1] == Transcribe(1, 0, 10 * FRAME, None, None)


def test_there_is_nothing_to_commit_without_speech() -> None:
    ears = Ears()
    ears.silence(50)
    (refusal,) = ears.commit()
    assert isinstance(refusal, Refused)
    assert (refusal.code, refusal.event_id) == ("input_audio_buffer_commit_empty", "event_1")


def test_without_turn_detection_the_client_commits_all_audio_since_its_last_commit() -> None:
    ears = Ears(None)
    ears.speech(3)
    assert kinds(ears.commit()) == [Refused], "96 ms are too few"
    ears.silence(1)
    assert kinds(ears.commit()) == [TurnCommitted]
    ears.speech(10)
    ears.commit()
    for word in ("one", "two"):
        ears.hearing.pump(0.0)
        ears.answer(word)
    assert [(c.start, c.stop) for c in ears.out if isinstance(c, Transcribe)] == [
        (0, 4 * FRAME),
        (4 * FRAME, 14 * FRAME),
    ]


def test_without_turn_detection_a_buffer_is_committed_when_it_is_full() -> None:
    ears = Ears(None, max_turn_s=1.0)
    assert kinds(ears.silence(40)) == [TurnCommitted, Transcribe]


def test_clearing_forgets_the_turn_and_its_transcription() -> None:
    ears = Ears()
    ears.speech(10)
    ears.silence(5)
    assert ears.does(ears.hearing.clear) == [CancelTranscription(1), InputCleared()]
    assert not ears.hearing.has_turn
    assert ears.hearing.user_state is UserState.SILENT
    assert ears.speech(3) == [SpeechStarted("item_0_2", 15 * 32)], "nothing from before the clear"


def test_clearing_leaves_a_committed_turn_alone() -> None:
    ears = Ears()
    ears.speech(10)
    ears.silence(16)
    assert ears.does(ears.hearing.clear) == [InputCleared()]
    assert len(ears.answer("hello")) == 1


# --- changes of settings --------------------------------------------------------------------------------------------


def test_switching_turn_detection_off_leaves_the_speech_under_way_to_the_client() -> None:
    ears = Ears()
    ears.silence(50)
    ears.speech(10)
    ears.configure(None)
    assert not ears.hearing.has_turn
    assert ears.hearing.deadline is None
    ears.speech(10)
    ears.commit()
    ears.hearing.pump(0.0)
    assert ears.out[-1] == Transcribe(1, 50 * FRAME - samples(300), 70 * FRAME, None, None)


def test_switching_turn_detection_off_in_silence_begins_an_empty_buffer() -> None:
    ears = Ears()
    ears.silence(50)
    ears.configure(None)
    assert kinds(ears.commit()) == [Refused]


def test_other_changes_keep_the_audio_that_the_client_has_not_committed() -> None:
    ears = Ears(None)
    ears.speech(20)
    ears.configure(None)
    assert kinds(ears.commit()) == [TurnCommitted]


def test_threshold_and_silence_follow_the_settings() -> None:
    ears = Ears(ServerVad(threshold=0.95))
    assert ears.speech(10) == []
    ears.configure(ServerVad(threshold=0.8, silence_duration_ms=200))
    assert kinds(ears.speech(10)) == [SpeechStarted]
    assert TurnCommitted in kinds(ears.silence(7))


# --- clocks ---------------------------------------------------------------------------------------------------------


def test_input_that_stalls_in_a_turn_is_ended_with_silence() -> None:
    ears = Ears()
    assert ears.hearing.deadline is None
    ears.speech(10)
    assert ears.hearing.deadline == ears.now + 1.0
    ears.now += 1.0
    assert ears.does(lambda: ears.hearing.insert_silence(ears.now)) == [InsertSilence(8000)]
    assert ears.hearing.deadline == ears.now + 1.0, "not at once again"
    ears.hearing.push(8000, 0.0, ears.now)
    assert kinds(ears.out[-2:]) == [SpeechStopped, TurnCommitted]
    assert ears.hearing.deadline is None


@pytest.mark.parametrize(("pace", "is_marked"), [(1.0, False), (0.5, True)])
def test_a_turn_that_came_faster_than_it_was_spoken_is_marked(pace: float, is_marked: bool) -> None:
    ears = Ears()
    for probability in [0.9] * 60 + [0.0] * 16:
        ears.now += FRAME_S * pace
        ears.hearing.push(FRAME, probability, ears.now)
        if ears.hearing.wants_floor:
            ears.hearing.open_turn()
    ears.hearing.pump(0.0)
    (heard,) = ears.answer("hello")
    assert heard.turn.timeline.faster_than_realtime is is_marked


def test_the_timeline_counts_from_the_last_frame_of_speech() -> None:
    ears = Ears()
    ears.speech(10)
    spoken_at = ears.now
    ears.silence(16)
    ended_at = ears.now
    ears.now += 1.0
    (heard,) = ears.answer("hello")
    assert heard.turn.timeline.cuts == {
        "last_speech": spoken_at,
        "endpoint": ended_at,
        "transcript": ended_at + 1.0,
    }


def test_closing_cancels_what_is_in_flight() -> None:
    ears = Ears()
    assert ears.does(ears.hearing.close) == []
    ears.speech(10)
    ears.silence(16)
    assert ears.does(ears.hearing.close) == [CancelTranscription(1)]
    assert ears.answer("late", transcription_id=1) == []
