"""When the user speaks, pauses and has finished, decided on the audio clock.

`TurnDetector` sees one scored frame at a time and counts samples; wall time never enters. Whether speech that it
finds becomes a turn is not decided here: over a speaking agent that is `InterruptionPolicy`'s word.
"""

from enum import Enum, auto

INPUT_RATE = 16_000
"""Samples a second of the audio clock."""

HYSTERESIS = 0.15
"""Speech goes on until the probability falls this far under the threshold (the figure of Silero's own VADIterator)."""


def samples_of(ms: float) -> int:
    return int(ms * INPUT_RATE / 1000)


def ms_of(samples: int) -> int:
    return samples * 1000 // INPUT_RATE


class UserState(Enum):
    SILENT = auto()
    SPEAKING = auto()
    PAUSING = auto()


class TurnEdge(Enum):
    STARTED = auto()
    """Speech has lasted `speech_min`; it began at `speech_start`."""
    PAUSED = auto()
    """Speech has been followed by `pause_min` of silence; it ended, perhaps for good, at `speech_end`."""
    RESUMED = auto()
    ENDED = auto()
    """The silence reached the endpoint; `speech_start` and `speech_end` hold until the next STARTED."""


class TurnDetector:
    """Speech edges from frame probabilities, with hysteresis.

    After `push`, `position` is the number of samples pushed, and `is_speech` whether the last frame counted as speech.
    """

    def __init__(self, *, threshold: float, speech_min_ms: int, pause_min_ms: int) -> None:
        self.threshold = threshold
        self.state = UserState.SILENT
        self.position = 0
        self.speech_start = 0
        self.speech_end = 0
        self.is_speech = False
        self._speech_min = samples_of(speech_min_ms)
        self._pause_min = samples_of(pause_min_ms)
        self._candidate: int | None = None

    def push(self, samples: int, probability: float, *, delay: int) -> TurnEdge | None:
        """The edge that this frame brings; `delay` is the endpoint's silence in samples."""
        start = self.position
        self.position += samples
        is_under_way = self.state is UserState.SPEAKING or self._candidate is not None
        self.is_speech = probability >= self.threshold - (HYSTERESIS if is_under_way else 0.0)
        if self.state is UserState.SILENT:
            return self._listen(start)
        if self.is_speech:
            return self._continue()
        return self._fall_silent(delay)

    def skip(self, samples: int) -> None:
        """Let audio pass that nobody listens to."""
        self.position += samples

    def reset(self) -> None:
        """Forget the speech under way; `position` goes on."""
        self.state = UserState.SILENT
        self._candidate = None

    def _listen(self, start: int) -> TurnEdge | None:
        if not self.is_speech:
            self._candidate = None
            return None
        if self._candidate is None:
            self._candidate = start
        if self.position - self._candidate < self._speech_min:
            return None
        self.state = UserState.SPEAKING
        self.speech_start, self.speech_end = self._candidate, self.position
        self._candidate = None
        return TurnEdge.STARTED

    def _continue(self) -> TurnEdge | None:
        self.speech_end = self.position
        if self.state is UserState.SPEAKING:
            return None
        self.state = UserState.SPEAKING
        return TurnEdge.RESUMED

    def _fall_silent(self, delay: int) -> TurnEdge | None:
        silence = self.position - self.speech_end
        if silence >= delay:
            self.reset()
            return TurnEdge.ENDED
        if self.state is UserState.SPEAKING and silence >= self._pause_min:
            self.state = UserState.PAUSING
            return TurnEdge.PAUSED
        return None
