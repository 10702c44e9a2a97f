"""What a recorded load test says: figures for each number of callers, from the lines that `loadtest.run` left."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from .caller import percentile
from .crowd import Pace
from .pacing import LATE_MS
from .people import BARGE_IN, LOST, OPENED, REFUSED, STAGE, STAGES, STALE, TURN, Outcome
from .run import OUTCOMES, RUN, SAMPLES
from .usage import Sample

SETTLE_S = 8.0
"""At the start of a step: callers who have just come have asked nothing yet."""
SHORTEST_S = 5.0
"""Of what is left of a step, to be counted."""
KNEE_FACTOR = 1.5
"""Of the p90 of a turn with few callers."""


@dataclass(frozen=True, slots=True)
class Record:
    outcomes: Sequence[Outcome]
    paces: Sequence[Pace]
    samples: Sequence[Sample]
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What a number of callers saw, and what they cost."""

    sessions: int
    seconds: float
    turn_ms: list[float]
    barge_in_ms: list[float]
    stage_ms: dict[str, list[float]]
    open_ms: list[float]
    missed: int
    """Turns."""
    stale: int
    """Chunks of an answer after it had been interrupted."""
    refused: int
    lost: int
    late_p99_ms: float
    """Of the callers' own frames, in the worst second."""
    late_seconds: int
    """In which the callers' own p99 was over the limit."""
    cpu: dict[str, float]
    """Cores, by role."""
    rss_mb: dict[str, float]
    processes: dict[str, int]

    def cpu_us(self, role: str) -> float:
        """CPU-microseconds a session-second: the number that holds on any machine of its kind."""
        return 1e6 * self.cpu.get(role, 0.0) / self.sessions


def read(folder: Path) -> Record:
    """Raises FileNotFoundError for a folder without a record."""
    lines = [json.loads(line) for line in (folder / OUTCOMES).read_text().splitlines()]
    return Record(
        [Outcome(**line) for line in lines if "name" in line],
        [Pace(**line) for line in lines if "wanted" in line],
        [Sample(**json.loads(line)) for line in (folder / SAMPLES).read_text().splitlines()],
        json.loads((folder / RUN).read_text()),
    )


def steps(record: Record) -> list[Step]:
    """One for each time that the number of callers stayed the same for long enough."""
    found = []
    for wanted, group in groupby(record.paces, key=lambda pace: pace.wanted):
        paces = list(group)
        start, stop = paces[0].at + SETTLE_S, paces[-1].at
        if wanted and stop - start >= SHORTEST_S:
            found.append(_step(wanted, start, stop, record))
    return found


def _step(wanted: int, start: float, stop: float, record: Record) -> Step:
    outcomes = [outcome for outcome in record.outcomes if start <= outcome.at < stop]
    samples = [sample for sample in record.samples if start <= sample.at < stop]
    paces = [pace for pace in record.paces if start <= pace.at < stop]
    failed = Counter(outcome.name for outcome in outcomes if outcome.failure)
    return Step(
        sessions=wanted,
        seconds=stop - start,
        turn_ms=_ms(outcomes, TURN),
        barge_in_ms=_ms(outcomes, BARGE_IN),
        stage_ms={stage: _ms(outcomes, STAGE + stage) for stage in STAGES},
        open_ms=_ms(outcomes, OPENED),
        missed=failed[TURN],
        stale=failed[STALE],
        refused=sum(outcome.name == REFUSED for outcome in outcomes),
        lost=sum(outcome.name == LOST for outcome in outcomes),
        late_p99_ms=max((pace.p99_ms for pace in paces), default=0.0),
        late_seconds=sum(pace.p99_ms > LATE_MS for pace in paces),
        cpu=cores(samples),
        rss_mb=samples[-1].rss_mb if samples else {},
        processes=samples[-1].processes if samples else {},
    )


def _ms(outcomes: Iterable[Outcome], name: str) -> list[float]:
    return [outcome.ms for outcome in outcomes if outcome.name == name and not outcome.failure]


def cores(samples: Sequence[Sample]) -> dict[str, float]:
    """CPU seconds a second between the first sample and the last, by role; a role that lost a process is left out."""
    if len(samples) < 2:
        return {}
    first, last = samples[0], samples[-1]
    seconds = last.at - first.at
    spent = {role: last.cpu_s[role] - first.cpu_s.get(role, 0.0) for role in last.cpu_s}
    return {role: cpu_s / seconds for role, cpu_s in spent.items() if cpu_s >= 0}


def knee(found: Sequence[Step]) -> tuple[int | None, int | None]:
    """The last number of callers who were served as few are, and the first who were not (None: there was none).

    Served as few are: no turn missed, nobody lost or refused, and the p90 of a turn at most half more than at the start.
    """
    good: int | None = None
    for step in sorted(found, key=lambda step: step.sessions):
        limit = KNEE_FACTOR * percentile(found[0].turn_ms, 0.9)
        is_good = not (step.missed or step.lost or step.refused) and percentile(step.turn_ms, 0.9) <= limit
        if not is_good:
            return good, step.sessions
        good = step.sessions
    return good, None
