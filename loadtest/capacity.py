"""How many replicas, cores and GPUs so many callers need, from what each stage was measured to cost.

    python -m loadtest.capacity plan --callers 1000 --from loadtest-results --stt 0.08x4 --llm 1.2x32 --tts 0.35x2
    python -m loadtest.capacity check loadtest-results --fit 10,25 --predict 40

The session tier is CPU time: a straight line over the number of sessions, fitted to a recorded load test (`loadtest.run`)
or given as microseconds a session-second. A stage is a number of calls that each hold a slot of a replica for so long:
`voice-serve bench` measures it for an engine (write seconds x slots). Calls come at random, from many callers who know
nothing of each other, so a stage is M/M/c (Erlang C): the fewest replicas are taken with which at most one call in a
hundred waits for a slot longer than a twentieth of a second. Service times of these engines vary less than the
exponential ones that M/M/c supposes, so it errs on the safe side (Kleinrock, Queueing Systems, vol. 1, 1975; the
wait shrinks with the variance by Allen and Cunneen's formula). An event loop is kept under 70% of its core: by
Pollaczek and Khinchine (Kleinrock again) a frame then waits on average for one to six others.

What is planned is then played through: a discrete-event simulation of all the callers, each by himself.
"""

import argparse
import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from serve_app.bench.report import Table, show

from .caller import percentile
from .figures import Step, read, steps
from .people import Habits
from .run import RESULTS
from .usage import SESSION_TIER

LOOP_SHARE = 0.7
"""Of a core, for an event loop."""
WAIT_S, WAIT_SHARE = 0.05, 0.01
"""At most so many calls wait for a slot so long."""
ENDPOINTING_S = 0.5
SIMULATED_S = 600.0


# --- what callers ask for -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a caller does, on average."""

    think_s: tuple[float, float] = Habits().think_s
    speech_s: float = 4.0
    answer_s: float = 4.8

    @property
    def turn_s(self) -> float:
        """From one question to the next."""
        return sum(self.think_s) / 2 + self.speech_s + ENDPOINTING_S + self.answer_s

    @property
    def turns_a_second(self) -> float:
        """Of one caller."""
        return 1 / self.turn_s


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    seconds: float
    """That a call holds its slot, measured with all slots in use."""
    slots: int
    """Of a replica: what it works on together."""
    calls: float = 1.0
    """A turn."""

    @classmethod
    def parse(cls, name: str, text: str) -> "Stage":
        """`SECONDSxSLOTS`. Raises ValueError."""
        seconds, _, slots = text.partition("x")
        return cls(name, float(seconds), int(slots or 1))


# --- the session tier -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """Cores = base + a_session * sessions."""

    base: float
    a_session: float

    def cores(self, sessions: int) -> float:
        return self.base + self.a_session * sessions


def fitted(points: Sequence[tuple[int, float]]) -> Line:
    """Least squares through (sessions, cores); one point goes through the origin. Raises ValueError for none."""
    if not points:
        raise ValueError("nothing to fit a line to")
    if len(points) == 1:
        return Line(0.0, points[0][1] / points[0][0])
    slope, base = np.polyfit([p[0] for p in points], [p[1] for p in points], 1)
    return Line(float(base), float(slope))


def tier_lines(found: Sequence[Step]) -> dict[str, Line]:
    roles = [role for role in SESSION_TIER if all(role in step.cpu for step in found)]
    return {role: fitted([(step.sessions, step.cpu[role]) for step in found]) for role in roles}


def loops(line: Line, sessions: int) -> int:
    """Event loops, each on a core of its own, kept under their share of it."""
    return max(1, math.ceil(line.cores(sessions) / LOOP_SHARE))


# --- the stages -----------------------------------------------------------------------------------------------------


def erlang_c(servers: int, load: float) -> float:
    """The share of calls that find all servers busy; `load` in erlangs. 1 where it is more than they can do."""
    if load >= servers:
        return 1.0
    blocked = 1.0  # Erlang B by its recurrence: the factorials of the closed form overflow
    for server in range(1, servers + 1):
        blocked = load * blocked / (server + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def waits_longer(servers: int, load: float, wait_s: float, service_s: float) -> float:
    """The share of calls that wait longer than `wait_s` for a server."""
    return erlang_c(servers, load) * math.exp(-max(0.0, servers - load) * wait_s / service_s)


@dataclass(frozen=True, slots=True)
class Need:
    stage: Stage
    calls_a_second: float
    load: float
    """Slots in use on average: erlangs."""
    replicas: int
    waiting: float
    """The share of calls that wait longer than `WAIT_S`."""

    @property
    def busy(self) -> float:
        return self.load / (self.replicas * self.stage.slots)


def need(stage: Stage, callers: int, traffic: Traffic) -> Need:
    calls = callers * traffic.turns_a_second * stage.calls
    load = calls * stage.seconds
    replicas = max(1, math.ceil(load / stage.slots))
    while waits_longer(replicas * stage.slots, load, WAIT_S, stage.seconds) > WAIT_SHARE:
        replicas += 1
    waiting = waits_longer(replicas * stage.slots, load, WAIT_S, stage.seconds)
    return Need(stage, calls, load, replicas, waiting)


# --- all callers, each by himself -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Simulated:
    waited_ms: list[float]
    """Of each turn, for slots of all its stages together."""
    busy: dict[str, float]
    """The share of slots in use, by stage."""


def simulate(
    stages: Sequence[tuple[Stage, int]],
    callers: int,
    traffic: Traffic,
    *,
    seconds: float = SIMULATED_S,
    seed: int = 0,
) -> Simulated:
    """`stages`: each with its replicas, in the order in which a turn comes to them.

    A caller thinks, speaks, and comes to each stage as soon as the one before has begun on his turn, for what it makes
    is streamed. Slots are given in order of arrival. A call holds its slot for half to one and a half of its seconds.
    """
    dice = random.Random(seed)
    free = [[0.0] * (replicas * stage.slots) for stage, replicas in stages]
    held = [0.0] * len(stages)
    # Arrivals are taken in order of time, so the slot that is free first is the right one, and no event of leaving is needed.
    arrivals = [(dice.uniform(0, traffic.turn_s), caller, 0, 0.0) for caller in range(callers)]
    heapq.heapify(arrivals)
    waited_ms = []
    while arrivals and arrivals[0][0] < seconds:
        at, caller, number, waited_s = heapq.heappop(arrivals)
        if number == len(stages):
            waited_ms.append(waited_s * 1000)
            rest_s = traffic.answer_s + dice.uniform(*traffic.think_s) + traffic.speech_s + ENDPOINTING_S
            heapq.heappush(arrivals, (at + rest_s, caller, 0, 0.0))
            continue
        begins = max(at, heapq.heappop(free[number]))
        holds_s = stages[number][0].seconds * dice.uniform(0.5, 1.5)
        heapq.heappush(free[number], begins + holds_s)
        held[number] += holds_s
        heapq.heappush(arrivals, (begins, caller, number + 1, waited_s + begins - at))
    slots = [replicas * stage.slots for stage, replicas in stages]
    names = [stage.name for stage, _ in stages]
    return Simulated(waited_ms, {n: h / (s * seconds) for n, h, s in zip(names, held, slots, strict=True)})


# --- what is said ---------------------------------------------------------------------------------------------------


def plan_tables(
    callers: int, lines: dict[str, Line], stages: Sequence[Stage], traffic: Traffic
) -> list[Table]:
    tier = []
    for role, line in lines.items():
        cores, count = line.cores(callers), loops(line, callers)
        each = math.ceil(callers / count)
        tier.append(
            (
                role,
                f"{line.a_session * 1e6:.0f}",
                f"{cores:.2f}",
                str(count),
                str(each),
                f"{cores / count:.0%}",
            )
        )
    needs = [need(stage, callers, traffic) for stage in stages]
    played = simulate([(one.stage, one.replicas) for one in needs], callers, traffic)
    rows = [
        (
            one.stage.name,
            f"{one.stage.seconds:g} s x {one.stage.slots}",
            f"{one.calls_a_second:.1f}",
            f"{one.load:.1f}",
            str(one.replicas),
            f"{one.busy:.0%}",
            f"{played.busy[one.stage.name]:.0%}",
            f"{one.waiting:.2%}",
        )
        for one in needs
    ]
    late = sum(ms > WAIT_S * 1000 for ms in played.waited_ms) / max(1, len(played.waited_ms))
    return [
        Table(
            f"The session tier for {callers} callers",
            ("process", "us a session-second", "cores", "replicas", "sessions each", "busy"),
            tier,
            f"An event loop is kept under {LOOP_SHARE:.0%} of a core. HAProxy runs threads in one process a node.",
        ),
        Table(
            f"The stages for {callers} callers, a turn every {traffic.turn_s:.1f} s each",
            (
                "stage",
                "a call",
                "calls a s",
                "erlangs",
                "replicas",
                "busy",
                "simulated",
                f"waits over {WAIT_S * 1000:g} ms",
            ),
            rows,
            f"Simulated: {len(played.waited_ms)} turns in {SIMULATED_S:g} s; waiting for slots, all stages together: "
            f"p50 {percentile(played.waited_ms, 0.5):.0f} ms, p99 {percentile(played.waited_ms, 0.99):.0f} ms, "
            f"over {WAIT_S * 1000:g} ms in {late:.2%} of the turns. A replica of a stage is a GPU, or its share of one.",
        ),
    ]


def check_table(found: Sequence[Step], fit: Sequence[int], predict: Sequence[int]) -> Table:
    """Fitted to some numbers of callers, held against others. Raises ValueError for a number that was not run."""
    missing = {*fit, *predict} - {step.sessions for step in found}
    if missing:
        raise ValueError(
            f"not in the record: {sorted(missing)} callers; there are {[s.sessions for s in found]}"
        )
    lines = tier_lines([step for step in found if step.sessions in fit])
    rows = []
    for step in found:
        if step.sessions not in predict:
            continue
        predicted = {role: line.cores(step.sessions) for role, line in lines.items()}
        predicted["together"] = sum(predicted.values())
        for role, cores in predicted.items():
            measured = sum(step.cpu[one] for one in SESSION_TIER) if role == "together" else step.cpu[role]
            rows.append(
                (str(step.sessions), role, f"{cores:.3f}", f"{measured:.3f}", f"{cores / measured - 1:+.1%}")
            )
    title = f"Cores, fitted to {', '.join(map(str, fit))} callers and held against a run it was not fitted to"
    return Table(title, ("callers", "process", "predicted", "measured", "error"), rows)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    args = argparse.ArgumentParser(
        prog="python -m loadtest.capacity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = args.add_subparsers(required=True, dest="command")
    plan = commands.add_parser("plan", help="replicas for so many callers")
    plan.add_argument("--callers", type=int, default=1000)
    plan.add_argument(
        "--from", type=Path, dest="folder", help="a record of loadtest.run: costs of the session tier"
    )
    plan.add_argument(
        "--ingress-us", type=float, default=8000, help="a session-second, where there is no record"
    )
    plan.add_argument("--haproxy-us", type=float, default=3000)
    plan.add_argument(
        "--stt", default="0.1x8", metavar="SxN", help="seconds a call holds a slot, slots of a replica"
    )
    plan.add_argument("--llm", default="1.0x32", metavar="SxN", help="of a whole answer")
    plan.add_argument("--tts", default="0.5x4", metavar="SxN", help="of all segments of an answer")
    plan.add_argument("--speech-s", type=float, default=Traffic().speech_s, help="of a question")
    plan.add_argument("--answer-s", type=float, default=Traffic().answer_s, help="of an answer's sound")
    check = commands.add_parser("check", help="the model against a run that it was not fitted to")
    check.add_argument("folder", type=Path, nargs="?", default=RESULTS)
    check.add_argument("--fit", type=_numbers, default=[10, 25], metavar="N,N")
    check.add_argument("--predict", type=_numbers, default=[40], metavar="N,N")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    console = Console()
    if args.command == "check":
        show(console, [check_table(steps(read(args.folder)), args.fit, args.predict)])
        return
    if args.folder is not None:
        lines = tier_lines(steps(read(args.folder)))
    else:
        lines = {"ingress": Line(0.0, args.ingress_us / 1e6), "haproxy": Line(0.0, args.haproxy_us / 1e6)}
    traffic = Traffic(speech_s=args.speech_s, answer_s=args.answer_s)
    stages = [Stage.parse(name, getattr(args, name)) for name in ("stt", "llm", "tts")]
    show(console, plan_tables(args.callers, lines, stages, traffic))


if __name__ == "__main__":
    main()
