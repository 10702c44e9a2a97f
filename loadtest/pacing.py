"""How late this process sends its frames: whether what it measures is the server or itself."""

from dataclasses import dataclass, field

LATE_MS = 20.0
"""A frame's length: a microphone that is later than this has skipped one."""

_BIN_MS = 0.1
_BINS = 10_000


@dataclass(slots=True)
class Lateness:
    """Counts in bins of 0.1 ms up to a second; what is later falls into the last bin."""

    counts: list[int] = field(default_factory=lambda: [0] * _BINS)
    total: int = 0

    def note(self, late_s: float) -> None:
        index = int(max(0.0, late_s) * 1000 / _BIN_MS)
        self.counts[min(index, _BINS - 1)] += 1
        self.total += 1

    def percentile_ms(self, share: float) -> float:
        """The upper edge of the bin that the share falls into; 0 where nothing was noted."""
        wanted, seen = share * self.total, 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return (index + 1) * _BIN_MS
        return 0.0

    def clear(self) -> None:
        self.counts = [0] * _BINS
        self.total = 0
