"""How many callers at which second: the profiles of a load test, as plain functions of time."""

from collections.abc import Callable
from dataclasses import dataclass

Users = tuple[int, float]
"""How many callers there should be, and how many of them may come or go a second."""
Profile = Callable[[float], Users | None]
"""None: the test is over."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """Up to `users` in equal time, a while at the top, and down again: what autoscaling is watched with."""

    users: int
    up_s: float
    hold_s: float

    def __call__(self, seconds: float) -> Users | None:
        rate = max(1.0, self.users / self.up_s)
        if seconds < self.up_s:
            return max(1, round(self.users * seconds / self.up_s)), rate
        if seconds < self.up_s + self.hold_s:
            return self.users, rate
        left = 2 * self.up_s + self.hold_s - seconds
        return (max(1, round(self.users * left / self.up_s)), rate) if left > 0 else None


@dataclass(frozen=True, slots=True)
class Soak:
    """`users` for a long time, of whom a tenth leave and as many new ones come every minute."""

    users: int
    hold_s: float
    spawn_rate: float = 5.0
    churn_every_s: float = 60.0
    churn_for_s: float = 6.0

    def __call__(self, seconds: float) -> Users | None:
        if seconds >= self.hold_s:
            return None
        is_low = seconds > self.churn_every_s and seconds % self.churn_every_s < self.churn_for_s
        return (self.users - self.users // 10 if is_low else self.users), self.spawn_rate


@dataclass(frozen=True, slots=True)
class Steps:
    """Each number of callers for so long: what the plots of latency against sessions are made of."""

    users: tuple[int, ...]
    step_s: float
    spawn_rate: float = 10.0

    def __call__(self, seconds: float) -> Users | None:
        step = int(seconds // self.step_s)
        return (self.users[step], self.spawn_rate) if step < len(self.users) else None


@dataclass(frozen=True, slots=True)
class Flat:
    users: int
    spawn_rate: float
    hold_s: float | None
    """None: until it is stopped."""

    def __call__(self, seconds: float) -> Users | None:
        if self.hold_s is not None and seconds >= self.hold_s:
            return None
        return self.users, self.spawn_rate
