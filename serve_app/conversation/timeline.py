"""Where the milliseconds of one answer went: monotone cuts of one span, so that the stages sum to the total.

    t0 last speech sample received        t4 = max(t3, first segment of text ready for synthesis)
    t1 = max(t0, end of turn decided)     t5 = max(t4, first audio synthesised)
    t2 = max(t1, transcript known)        t6 = max(t5, first audio sent)
    t3 = max(t2, first token)

A stage that was done ahead of its turn (a transcript begun at the first silence) costs nothing here: its cut falls
together with the one before. Times are seconds of the clock that `Conversation.handle` is given.
"""

from dataclasses import dataclass, field, fields
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class TurnLatency:
    """Seconds of each stage of one answer; their sum is `total`."""

    endpointing: float
    stt: float
    llm_ttft: float
    first_segment: float
    tts_ttfb: float
    overhead: float
    faster_than_realtime: bool = False
    """The input came faster than it was spoken, so the figures say nothing about a live caller."""
    last_speech_at: float = field(default=0.0, compare=False)
    """t0, for who wants to place the stages in time."""

    @property
    def total(self) -> float:
        return (
            self.endpointing + self.stt + self.llm_ttft + self.first_segment + self.tts_ttfb + self.overhead
        )

    def stages(self) -> dict[str, float]:
        """Stage name -> seconds, in the order in which they pass, `total` last."""
        names = [f.name for f in fields(self) if f.name not in ("faster_than_realtime", "last_speech_at")]
        return {name: getattr(self, name) for name in names} | {"total": self.total}


@dataclass(slots=True)
class TurnTimeline:
    """The cuts of one answer as they become known; each is set once, the first time counts."""

    cuts: dict[str, float] = field(default_factory=dict)
    faster_than_realtime: bool = False

    ORDER = (
        "last_speech",
        "endpoint",
        "transcript",
        "first_token",
        "first_segment",
        "first_audio",
        "first_sent",
    )

    def mark(self, cut: str, now: float) -> None:
        self.cuts.setdefault(cut, now)

    def transcript_s(self) -> float | None:
        """From the last speech to where the turn had ended and its words were known."""
        if self.faster_than_realtime:
            return None
        return max(self.cuts["endpoint"], self.cuts["transcript"]) - self.cuts["last_speech"]

    def latency(self) -> TurnLatency | None:
        """None until the first audio (or, of a text answer, the first text) was sent, or if no speech began it."""
        if "last_speech" not in self.cuts or "first_sent" not in self.cuts:
            return None
        monotone = [self.cuts["last_speech"]]
        for cut in self.ORDER[1:]:
            monotone.append(max(monotone[-1], self.cuts.get(cut, monotone[-1])))
        endpointing, stt, llm_ttft, first_segment, tts_ttfb, overhead = (b - a for a, b in pairwise(monotone))
        flag = self.faster_than_realtime
        return TurnLatency(
            endpointing, stt, llm_ttft, first_segment, tts_ttfb, overhead, flag, self.cuts["last_speech"]
        )
