"""What became of sessions whose sockets ended: who came back, who did not, and when it happened."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .people import LOST, OPENED, RESUMED, Outcome

REDEPLOY = "redeploy"
GAP_S = 10.0
"""Ends of sockets that lie so far apart are different moves."""
START_S = 40.0
"""A redeploy may need so long until its replicas have started and the first session moves."""
TOLD_S, SETTLE_S = 0.5, 5.0
"""Turns so soon before and after a move count as during it: a turn that it cuts is told of before the cut is."""


@dataclass(frozen=True, slots=True)
class Returns:
    begun: int
    """Sessions, those of callers who could not go on with theirs included."""
    lost: int
    """Sessions whose caller began a new one, or was still away at the end."""
    codes: Counter[str]
    """How sockets were ended by the server."""
    away_s: list[float]
    """From the end of a socket to the session's going on, of each that did."""


def returns(outcomes: Iterable[Outcome]) -> Returns:
    """`outcomes` in order."""
    found = Returns(0, 0, Counter(), [])
    begun, lost, away = 0, 0, dict[str, float]()
    for one in outcomes:
        if one.name == LOST:
            found.codes[one.failure.rpartition(" ")[2]] += 1
            away[one.person] = one.at
        elif one.name == RESUMED:
            found.away_s.append(one.at - away.pop(one.person))
        elif one.name == OPENED and not one.failure:
            begun += 1
            lost += away.pop(one.person, None) is not None
    return Returns(begun, lost + len(away), found.codes, found.away_s)


@dataclass(frozen=True, slots=True)
class Move:
    """Sockets that ended close to one another."""

    name: str
    began_s: float
    over_s: float
    """When the last one was back."""

    def covers(self, at_s: float) -> bool:
        return self.began_s - TOLD_S <= at_s <= self.over_s + SETTLE_S


def moves(outcomes: Iterable[Outcome], redeploy_at_s: float | None = None) -> list[Move]:
    """In order. What happens soon after a redeploy belongs to it."""
    happened = [(one.at, one.name) for one in outcomes if one.name in (LOST, RESUMED)]
    if redeploy_at_s is not None:
        happened.append((redeploy_at_s, REDEPLOY))
    groups: list[list[tuple[float, str]]] = []
    for at, name in sorted(happened):
        gap_s = START_S if groups and groups[-1][-1][1] == REDEPLOY else GAP_S
        if not groups or at - groups[-1][-1][0] > gap_s or name == REDEPLOY:
            groups.append([])
        groups[-1].append((at, name))
    return [_move(group) for group in groups]


def _move(group: Sequence[tuple[float, str]]) -> Move:
    ended = sum(name == LOST for _, name in group)
    words = [REDEPLOY] if group[0][1] == REDEPLOY else []
    return Move(", ".join([*words, f"{ended} moved"]), group[0][0], group[-1][0])
