"""When each chunk is sent, what of it the user has heard, and which words those were.

The client is taken to play what it gets at once and in order: a chunk sent at `t` sounds from `max(t, end of the
one before)`. The next chunk is due when no more than the lead is still to be played, so never more than the lead and
one chunk are ahead. A chunk is in flight between `pop` and `sent`, and only one is: a slow socket slows the pacing
and nothing else.
"""

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .commands import Heard
from .events import ChunkId, ItemId, ResponseId, SegmentId, WordTime
from .segmentation import is_speakable

SPOKEN_CHARS_PER_S = 15.0
"""Ordinary English speech; used only for a segment that was cut before its length was known."""

_ROUNDING = 1e-6
"""Seconds; sums of chunk lengths and word times of an engine differ by rounding."""


@dataclass(slots=True)
class Segment:
    segment_id: SegmentId
    text: str
    start_s: float = 0.0
    """Where it begins in its item's audio."""
    duration_s: float = 0.0
    is_finished: bool = False
    words: list[WordTime] = field(default_factory=list)

    def spoken_until(self, seconds: float) -> int:
        """How many characters of the text had been spoken `seconds` into this segment, whole words only."""
        if self.is_finished and seconds >= self.duration_s - _ROUNDING:
            # An engine's word times may lie past the end of its sound, or leave words out.
            return len(self.text)
        ends = [0]
        ends += [
            word.end_char for word in self.words or self._estimated() if word.end_s <= seconds + _ROUNDING
        ]
        end = max(ends)
        return (
            len(self.text) if end and not is_speakable(self.text[end:]) else _with_punctuation(self.text, end)
        )

    def _estimated(self) -> list[WordTime]:
        """Words laid out in proportion to their length."""
        total = (
            self.duration_s if self.is_finished else max(self.duration_s, len(self.text) / SPOKEN_CHARS_PER_S)
        )
        per_char = total / max(1, len(self.text))
        spans = [match.span() for match in re.finditer(r"\S+", self.text)]
        return [WordTime(start, end, start * per_char, end * per_char) for start, end in spans]


@dataclass(slots=True)
class Utterance:
    """One answer's sound: its segments, what was sent of it and when that plays."""

    item_id: ItemId
    response_id: ResponseId
    segments: list[Segment] = field(default_factory=list)
    sent_s: float = 0.0
    cut_s: float | None = None
    """Where the client or an interruption cut it; words after it were not heard."""
    _spans: list[tuple[float, float]] = field(default_factory=list)
    """(start, end) in wall time of unbroken stretches of play."""

    def add_segment(self, segment_id: SegmentId, text: str) -> None:
        start = self.segments[-1].start_s + self.segments[-1].duration_s if self.segments else 0.0
        self.segments.append(Segment(segment_id, text, start))

    def segment(self, segment_id: SegmentId) -> Segment | None:
        return next((segment for segment in self.segments if segment.segment_id == segment_id), None)

    def break_off(self, segment_id: SegmentId) -> None:
        """No more of the segment will come: its words end with its sound."""
        segment = self.segment(segment_id)
        assert segment is not None
        if segment.duration_s == 0.0:
            self.segments.remove(segment)
        else:
            segment.text = segment.text[: segment.spoken_until(segment.duration_s)]
            segment.is_finished = True

    def played_s(self, now: float) -> float:
        return sum(min(max(now - start, 0.0), end - start) for start, end in self._spans)

    def note_sent(self, play_from: float, duration_s: float) -> None:
        self.sent_s += duration_s
        if self._spans and play_from <= self._spans[-1][1] + _ROUNDING:
            self._spans[-1] = (self._spans[-1][0], self._spans[-1][1] + duration_s)
        else:
            self._spans.append((play_from, play_from + duration_s))

    def heard(self, seconds: float) -> Heard:
        """The words wholly played in the first `seconds` of this answer's sound."""
        text = ""
        is_estimated = False
        for segment in self.segments:
            inside = seconds - segment.start_s
            if inside <= 0:
                break
            text += segment.text[: segment.spoken_until(inside)]
            is_estimated |= not segment.words
        return Heard(text.strip(), round(min(seconds, self.sent_s) * 1000), is_estimated)

    def cut_to(self, end_s: float) -> str:
        """It was heard up to there; returns the words that leaves."""
        self.sent_s = max(self.sent_s, end_s)
        self.cut_s = end_s
        return self.sent_text()

    @property
    def longest_s(self) -> float:
        """How much of it can have been sent, for all that is known of its segments."""
        if not self.segments:
            return self.sent_s
        last = self.segments[-1]
        return max(self.sent_s, last.start_s + max(last.duration_s, len(last.text) / SPOKEN_CHARS_PER_S))

    def sent_text(self) -> str:
        """The words wholly sent, or, once cut, wholly heard."""
        return self.heard(self.sent_s if self.cut_s is None else self.cut_s).text


@dataclass(frozen=True, slots=True)
class Chunk:
    chunk_id: ChunkId
    segment_id: SegmentId
    utterance: Utterance
    duration_s: float
    is_first_of_segment: bool


class Playout:
    def __init__(self, lead_s: float) -> None:
        self._lead_s = lead_s
        self._unsent: deque[Chunk] = deque()
        self._in_flight: Chunk | None = None
        self._utterances: list[Utterance] = []
        self._drain_at = float("-inf")

    @property
    def sounded(self) -> tuple[Utterance, ...]:
        """The answers of which sound was sent and that can still be asked about, the newest last."""
        return tuple(utterance for utterance in self._utterances if utterance.sent_s)

    def restore(self, utterances: Iterable[Utterance]) -> None:
        """What was said in an earlier life of the conversation; none of it sounds."""
        self._utterances = list(utterances)

    def begin(self, item_id: ItemId, response_id: ResponseId) -> Utterance:
        """A new answer, admitted."""
        utterance = Utterance(item_id, response_id)
        self.admit(utterance)
        return utterance

    def admit(self, utterance: Utterance) -> None:
        """It may sound from now on; of those before it only the last that did can still be asked about, or cut."""
        sounded = [before for before in self._utterances if before.sent_s]
        self._utterances = [*sounded[-1:], utterance]

    def utterance(self, item_id: ItemId) -> Utterance | None:
        """None for an item whose word times are no longer held."""
        return next((u for u in self._utterances if u.item_id == item_id), None)

    def push(self, utterance: Utterance, segment: Segment, chunk_id: ChunkId, duration_s: float) -> None:
        is_first = segment.duration_s == 0.0
        segment.duration_s += duration_s
        self._unsent.append(Chunk(chunk_id, segment.segment_id, utterance, duration_s, is_first))

    def due(self) -> float | None:
        """When the next chunk should be sent; None if there is none, or one is in flight."""
        if self._in_flight is not None or not self._unsent:
            return None
        return self._drain_at - self._lead_s

    def pop(self, now: float) -> Chunk | None:
        """The chunk that is due, now in flight."""
        due = self.due()
        if due is None or due > now:
            return None
        self._in_flight = self._unsent.popleft()
        return self._in_flight

    def sent(self, chunk_id: ChunkId, now: float) -> Chunk | None:
        """The chunk in flight has reached the socket; None if it is not the one awaited."""
        chunk = self._in_flight
        if chunk is None or chunk.chunk_id != chunk_id:
            return None
        self._in_flight = None
        play_from = max(now, self._drain_at)
        chunk.utterance.note_sent(play_from, chunk.duration_s)
        self._drain_at = play_from + chunk.duration_s
        return chunk

    def unsent_s(self, utterance: Utterance) -> float:
        """Seconds of `utterance` that wait to be sent or are in flight."""
        chunks = [*self._unsent, *([self._in_flight] if self._in_flight else [])]
        return sum(chunk.duration_s for chunk in chunks if chunk.utterance is utterance)

    def is_empty(self, utterance: Utterance) -> bool:
        return self._in_flight is None and not any(chunk.utterance is utterance for chunk in self._unsent)

    def is_audible(self, now: float) -> bool:
        """True while sound that was sent is still being played, or more of it waits to be sent."""
        return now < self._drain_at or self._in_flight is not None or bool(self._unsent)

    def drop(self, utterance: Utterance) -> None:
        """Forget what of it is unsent."""
        self._unsent = deque(chunk for chunk in self._unsent if chunk.utterance is not utterance)
        if self._in_flight is not None and self._in_flight.utterance is utterance:
            self._in_flight = None

    def cut(self, now: float) -> list[tuple[Utterance, Heard]]:
        """Silence: all that is unsent is dropped. Returns each answer that was not heard to its end, as it was heard."""
        cut = []
        for utterance in self._utterances:
            self.drop(utterance)
            played = utterance.played_s(now)
            if utterance.cut_s is None and played < utterance.sent_s - _ROUNDING:
                utterance.cut_s = played
                cut.append((utterance, utterance.heard(played)))
        self._drain_at = min(self._drain_at, now)
        return cut

    def fall_silent(self, utterance: Utterance, now: float) -> None:
        """The client has stopped its playback of `utterance`; the sound of a later one goes on."""
        if utterance is self._utterances[-1]:
            self._drain_at = min(self._drain_at, now)


def _with_punctuation(text: str, end: int) -> int:
    """`end` moved behind the punctuation that clings to the word before it."""
    while 0 < end < len(text) and not text[end].isspace() and not text[end].isalnum():
        end += 1
    return end
