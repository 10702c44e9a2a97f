"""Whether speech over the agent takes the floor."""

from enum import Enum, auto

from .turn_taking import samples_of


class AgentState(Enum):
    IDLE = auto()
    THINKING = auto()
    """An answer is under way and has not been heard yet."""
    SPEAKING = auto()
    """Sound of the agent is with the user: until the end of playout, not until `response.done`."""


class Verdict(Enum):
    IGNORE = auto()
    INTERRUPT = auto()


class InterruptionPolicy:
    """Speech of `min_ms` takes the floor; anything shorter, a cough or a click, does not.

    PAUSE, an interruption that is taken back when nothing was said, would be a third verdict.
    """

    def __init__(self, min_ms: int) -> None:
        self._min = samples_of(min_ms)

    def judge(self, speech: int, agent: AgentState) -> Verdict:
        """`speech`: samples of speech so far."""
        if agent is AgentState.IDLE or speech >= self._min:
            return Verdict.INTERRUPT
        return Verdict.IGNORE
