"""What a caller hears, and what had been played of it when."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serve_app.audio.pcm import Samples, pcm_samples

from .connection import RATE, Arrival


@dataclass(frozen=True, slots=True)
class Played:
    """An item that was stopped, and how much of it had been played."""

    item_id: str
    played_s: float


@dataclass(frozen=True, slots=True)
class _Span:
    """Samples that sound from `start` on, without a gap."""

    item_id: str
    start: float
    samples: Samples

    @property
    def stop(self) -> float:
        return self.start + len(self.samples) / RATE

    def played(self, now: float) -> Samples:
        due = round((now - self.start) * RATE)
        return self.samples[: max(0, due)]


@dataclass(frozen=True, slots=True)
class ChunkArrival:
    """A chunk of audio as it came: the evidence for what a server sends, and when."""

    at: float
    item_id: str
    duration_s: float
    ahead_s: float
    """How much unplayed audio the player then held, this chunk included."""
    is_stale: bool
    """It belongs to an item that had been stopped: a correct server sends none."""


class Player:
    """A loudspeaker without hardware: plays chunks one after another at 1x, each from its arrival at the earliest.

    Independent of the server's own account of what was heard. Times must not go backwards. Chunks of an item that
    was flushed are recorded in `arrivals` and not played.
    """

    def __init__(self) -> None:
        self.arrivals: list[ChunkArrival] = []
        self._spans: list[_Span] = []
        self._open: set[str] = set()
        self._flushed: set[str] = set()

    def handle(self, arrival: Arrival) -> Played | None:
        """Take in an event; when it stops playback, what was stopped: the caller then sends `truncate`."""
        event = arrival.event
        match event["type"]:
            case "response.output_audio.delta":
                self.push(event["item_id"], arrival.audio, arrival.at)
            case "response.output_audio.done":
                self._open.discard(event["item_id"])
            case "input_audio_buffer.speech_started":
                return self.flush(arrival.at)
            case "response.done":
                self._open.clear()  # an answer that failed half-way ends here
            case _:
                pass
        return None

    def push(self, item_id: str, pcm: bytes, at: float) -> None:
        samples = pcm_samples(pcm)
        is_stale = item_id in self._flushed
        if not is_stale:
            self._open.add(item_id)
            self._spans.append(_Span(item_id, max(at, self.ends_at), samples))
        ahead_s = max(0.0, self.ends_at - at)
        self.arrivals.append(ChunkArrival(at, item_id, len(samples) / RATE, ahead_s, is_stale))

    def flush(self, at: float) -> Played | None:
        """Stop now and forget what was not played; None if all that came had been played and no more was to come."""
        if not self._spans:
            return None
        item_id = next((span.item_id for span in self._spans if span.stop > at), self._spans[-1].item_id)
        if self.ends_at <= at and item_id not in self._open:
            return None
        self._flushed |= {span.item_id for span in self._spans if span.stop > at} | {item_id}
        self._spans = [_Span(s.item_id, s.start, s.played(at)) for s in self._spans if s.start < at]
        self._open -= self._flushed
        return Played(item_id, self.played_s(item_id, at))

    @property
    def ends_at(self) -> float:
        """When the last sound that has come will have been played."""
        return self._spans[-1].stop if self._spans else float("-inf")

    def is_playing(self, now: float) -> bool:
        """An item sounds, or waits for audio of its own."""
        return now < self.ends_at or bool(self._open)

    def began_at(self, item_id: str) -> float | None:
        """When the item's first sample was played."""
        return next((span.start for span in self._spans if span.item_id == item_id), None)

    def played_s(self, item_id: str, now: float) -> float:
        return len(self.played(item_id, now)) / RATE

    def played(self, item_id: str, now: float) -> Samples:
        """Exactly the samples of the item that had been played, gaps left out; int16 at 24 kHz."""
        parts = [span.played(now) for span in self._spans if span.item_id == item_id]
        return _joined(parts)

    def heard(self, now: float) -> Samples:
        """What a listener heard from the first sound on, gaps and all; int16 at 24 kHz."""
        parts: list[Samples] = []
        length = 0
        for span in (span for span in self._spans if span.start < now):
            offset = round((span.start - self._spans[0].start) * RATE)
            sound = span.played(now)
            parts += [np.zeros(max(0, offset - length), dtype=np.int16), sound]
            length = max(length, offset) + len(sound)
        return _joined(parts)


def _joined(parts: list[npt.NDArray[np.int16]]) -> Samples:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int16)
