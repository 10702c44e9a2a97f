"""Callers who become many and few again, while every stage grows and shrinks with them: 1 -> N -> 1 replicas.

A caller is a person of `people`: asks, listens, thinks, asks again, and hangs up between two turns when the ramp wants
fewer. Whose replica goes is told to move (1012) and comes back with its token; who never comes back to its session has
lost it. Replicas are what Serve's controller says, twice a second. `--redeploy` replaces all replicas of the running
application while most callers are there.
"""

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import yaml
from ray import serve

from .application import APPLICATION, RAMP, Application, application, serve_run
from .bench_turns import SILENCE_MS, STAGE_MS
from .caller import percentile
from .command import Commands, add_command
from .ledger import Ledger
from .moves import Move, Returns, moves, returns
from .pacing import LATE_MS, Lateness
from .people import CUT, OPENED, REFUSED, STAGE, STAGES, STALE, TURN, Habits, Outcome, Person
from .ramp_page import write_page
from .voices import Clip, clips, room_noise

DEPLOYMENTS = ("Ingress", "SpeechToText", "LanguageModel", "TextToSpeech")
FIRST_CLAUSE_MS = 60.0
"""Three tokens after the first at 50 a second, as config.ramp.yaml has them."""
EXPLAINED_MS = SILENCE_MS + 2 * STAGE_MS + FIRST_CLAUSE_MS
"""From the end of speech to the first sound, of the endpointing and the set stages alone."""
FEW = 2
"""Callers before and after."""
HABITS = Habits(think_s=(1.0, 3.0), barge_in_share=0.1, missed_after_s=10.0, again_after_s=(0.2, 1.0))
REDEPLOY_AFTER_S = 3.0
"""From the height on."""
LEAVE_S = 30.0
"""At the end: a turn takes no longer."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """How many callers are wanted when: few, rising, many, falling, few."""

    many: int
    before_s: float = 12
    rise_s: float = 30
    many_s: float = 25
    fall_s: float = 20
    after_s: float = 15

    @property
    def corners(self) -> tuple[float, ...]:
        steps = (0.0, self.before_s, self.rise_s, self.many_s, self.fall_s, self.after_s)
        return tuple(float(at) for at in np.cumsum(steps))

    def wanted(self, at_s: float) -> int:
        return round(float(np.interp(at_s, self.corners, (FEW, FEW, self.many, self.many, FEW, FEW))))

    def phase(self, at_s: float) -> str:
        names = ("few", "rising", "many", "falling", "few again")
        return names[int(np.searchsorted(self.corners[1:-1], at_s, side="right"))]


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    callers: int
    running: Mapping[str, int]
    stopping: Mapping[str, int]
    """Replicas that are draining."""
    busy: float
    """Share of the machine's cores since the sample before."""

    @property
    def is_small(self) -> bool:
        return all(self.running[name] == 1 and not self.stopping[name] for name in DEPLOYMENTS)


@dataclass
class Crowd:
    """The callers and what happened to them."""

    url: str
    voices: Sequence[Clip]
    began: float
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    lateness: Lateness = field(default_factory=Lateness)
    noise: Sequence[bytes] = field(default_factory=room_noise)
    here: list[Person] = field(default_factory=list)
    """Who has not been told to leave."""
    ledgers: list[Ledger] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    """Their times are seconds since `began`."""

    def now_s(self) -> float:
        return time.monotonic() - self.began

    async def follow(self, ramp: Ramp, until: asyncio.Event) -> None:
        """Callers come and go as the ramp wants, until it is over and `until` is set; then all hang up."""
        async with asyncio.TaskGroup() as tasks:
            calls: list[asyncio.Task[None]] = []
            while not (self.now_s() > ramp.corners[-1] and until.is_set()):
                for _ in range(len(self.here), ramp.wanted(self.now_s())):
                    calls.append(tasks.create_task(self._person(len(calls)).live()))
                self._let_go(len(self.here) - ramp.wanted(self.now_s()))
                await asyncio.sleep(0.25)
            self._let_go(len(self.here))
            _, staying = await asyncio.wait(calls, timeout=LEAVE_S)
            for call in staying:
                call.cancel()

    def _person(self, number: int) -> Person:
        ledger = Ledger("")
        person = Person(
            f"caller {number}",
            self.url,
            self.voices,
            self.noise,
            HABITS,
            self._note,
            self.lateness,
            ledger,
        )
        self.here.append(person)
        self.ledgers.append(ledger)
        return person

    def _note(self, outcome: Outcome) -> None:
        self.outcomes.append(replace(outcome, at=outcome.at - self.began))

    def _let_go(self, count: int) -> None:
        for person in self.dice.sample(self.here, max(0, count)):
            person.leave()
            self.here.remove(person)


async def watch(
    crowd: Crowd, samples: list[Sample], ramp: Ramp, settled: asyncio.Event, settle_s: float
) -> None:
    """Samples of what is there, until after the ramp every stage is at one replica again, or `settle_s` later."""
    while not settled.is_set():
        status = await asyncio.to_thread(serve.status)
        found = status.applications[APPLICATION].deployments
        if not found.keys() >= set(DEPLOYMENTS):  # for a moment of a redeploy
            await asyncio.sleep(0.5)
            continue
        states = {
            name: Counter({str(state): n for state, n in found[name].replica_states.items()})
            for name in DEPLOYMENTS
        }
        sample = Sample(
            crowd.now_s(),
            sum(person.is_open for person in crowd.here),
            {name: counted["RUNNING"] for name, counted in states.items()},
            {name: counted["STOPPING"] for name, counted in states.items()},
            psutil.cpu_percent() / 100,
        )
        samples.append(sample)
        over_s = sample.at_s - ramp.corners[-1]
        if (over_s > 0 and sample.is_small) or over_s > settle_s:
            settled.set()
        await asyncio.sleep(0.5)


@contextmanager
def redeployed(app: Application) -> Iterator[None]:
    """A second `serve run` of the same application in another version: every replica is replaced."""
    config = yaml.safe_load(app.config.read_text())
    config["applications"][0]["runtime_env"]["env_vars"]["RELEASE"] = "2"
    path = app.config.with_name("redeploy.yaml")
    path.write_text(yaml.safe_dump(config))
    with app.log.open("ab") as out, serve_run(path, app.address, out):
        yield


async def redeploy_at(app: Application, crowd: Crowd, at_s: float, settled: asyncio.Event) -> None:
    await asyncio.sleep(at_s - crowd.now_s())
    with redeployed(app):
        await settled.wait()


async def measure(
    app: Application, voices: Sequence[Clip], ramp: Ramp, settle_s: float, redeploy_at_s: float | None
) -> tuple[Crowd, list[Sample]]:
    crowd = Crowd(app.realtime, voices, time.monotonic())
    samples: list[Sample] = []
    settled = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch(crowd, samples, ramp, settled, settle_s))
        tasks.create_task(crowd.follow(ramp, settled))
        if redeploy_at_s is not None:
            tasks.create_task(redeploy_at(app, crowd, redeploy_at_s, settled))
    return crowd, samples


def add_parser(commands: Commands) -> None:
    what = "callers become many and few again, replicas follow (HAProxy mode, Linux)"
    command = add_command(commands, "ramp", run, what)
    command.add_argument("--sessions", type=int, default=16, help="at the height (default: %(default)s)")
    command.add_argument(
        "--drain-s", type=float, default=30, help="how long a removed ingress replica keeps its callers"
    )
    command.add_argument(
        "--settle-s", type=float, default=60, help="wait so long for one replica a stage again"
    )
    command.add_argument("--redeploy", action="store_true", help="replace every replica at the height")
    command.add_argument("--page", type=Path, help="write a page with plots here (.html)")


def run(args: argparse.Namespace) -> None:
    ramp = Ramp(args.sessions)
    redeploy_at = ramp.corners[2] + REDEPLOY_AFTER_S if args.redeploy else None
    env = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(args.drain_s)}
    voices, _ = clips(args.audio / "digits")
    with application(RAMP, proxy="haproxy", env=env) as app:
        crowd, samples = asyncio.run(measure(app, voices, ramp, args.settle_s, redeploy_at))
    happened = ", redeployed at the height" if args.redeploy else ""
    title = f"{FEW} -> {args.sessions} -> {FEW} callers, {args.drain_s:g} s of draining{happened}"
    made = moves(crowd.outcomes, redeploy_at)
    lines = [*replica_lines(samples), "", *session_lines(crowd), *move_lines(made), ""]
    lines += [*turn_lines(crowd.outcomes, ramp, made), "", *stage_lines(crowd.outcomes, made), ""]
    lines += [busy_line(samples, made), trust_line(crowd.lateness)]
    print("\n".join([title, "", *lines]))
    if args.page is not None:
        turns = [(one.at, overhead_ms(one)) for one in crowd.outcomes if one.name == TURN]
        marks = [(move.began_s, move.name) for move in made]
        write_page(args.page, title, samples, turns, marks, lines)
        print(f"\nplots: {args.page}")


def replica_lines(samples: Sequence[Sample]) -> Iterator[str]:
    yield f"{'replicas':>14} {'before':>7} {'most':>5} {'after':>6}   grew at   one for good"
    for name in DEPLOYMENTS:
        counts = [(s.at_s, s.running[name]) for s in samples]
        grew = next((f"{at:.0f} s" for at, n in counts if n > 1), "never")
        last = max((at for at, n in counts if n > 1), default=0.0)
        small = next((f"{at:.0f} s" for at, n in counts if at > last and n == 1), "never")
        most = max(n for _, n in counts)
        yield f"{name:>14} {counts[0][1]:7d} {most:5d} {counts[-1][1]:6d} {grew:>9} {small:>14}"


def session_lines(crowd: Crowd) -> Iterator[str]:
    found: Returns = returns(crowd.outcomes)
    refused = sum(one.name == REFUSED for one in crowd.outcomes)
    unreachable = Counter(one.failure for one in crowd.outcomes if one.name == OPENED and one.failure)
    stale = sum(one.name == STALE for one in crowd.outcomes)
    histories = [is_whole for ledger in crowd.ledgers for is_whole in ledger.resumptions]
    yield f"sessions begun {found.begun}, lost (never came back) {found.lost}"
    yield (
        f"sockets ended by the server {found.codes.total()}{_counted(found.codes)}, sessions resumed {len(found.away_s)}, "
        f"away p50 {percentile(found.away_s, 0.5):.1f} s, longest {max(found.away_s, default=0.0):.1f} s"
    )
    yield f"histories that came back {len(histories)}, intact {sum(histories)}"
    yield f"refused {refused}, sound of an interrupted answer {stale}"
    yield f"calls that had to be tried again {unreachable.total()}{_counted(unreachable)}"


def _counted(codes: Mapping[str, int]) -> str:
    return f" ({', '.join(f'{n} x {code}' for code, n in sorted(codes.items()))})" if codes else ""


def move_lines(made: Sequence[Move]) -> Iterator[str]:
    for move in made:
        yield f"{move.began_s:6.1f} s to {move.over_s:6.1f} s: {move.name}"


def turn_lines(outcomes: Sequence[Outcome], ramp: Ramp, made: Sequence[Move]) -> Iterator[str]:
    """Overhead by the ramp's phase, then by what the moves did to it."""
    yield f"{'overhead, ms':>14} {'turns':>6} {'missed':>7} {'cut':>5} {'p50':>7} {'p90':>7} {'p99':>7} {'longest':>8}"
    turns = [one for one in outcomes if one.name == TURN]
    for phase in dict.fromkeys(ramp.phase(at) for at in ramp.corners):
        yield _turn_line(phase, [turn for turn in turns if ramp.phase(turn.at) == phase])
    yield _turn_line("all", turns)
    for when, those in around(made, turns):
        yield _turn_line(f"{when} moves", those)
    yield "missed: no answer; cut: the question was being said when the line ended, and has to be said again"


def stage_lines(outcomes: Sequence[Outcome], made: Sequence[Move]) -> Iterator[str]:
    """Where the time of a turn goes, as the server accounts for it."""
    yield f"{'p50 / p99, ms':>14} " + " ".join(f"{stage:>13}" for stage in STAGES)
    timed = [one for one in outcomes if one.name.startswith(STAGE)]
    for when, those in around(made, timed) or [("all", timed)]:
        by_stage = ([one.ms for one in those if one.name == STAGE + stage] for stage in STAGES)
        shares = (f"{percentile(ms, 0.5):.0f} / {percentile(ms, 0.99):.0f}" for ms in by_stage)
        yield f"{when:>14} " + " ".join(f"{share:>13}" for share in shares)


def around(made: Sequence[Move], outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """Those before, during and after the moves; nothing where nobody moved."""
    parts: dict[str, list[Outcome]] = {"before": [], "during": [], "after": []} if made else {}
    for one in outcomes if made else ():
        is_during = any(move.covers(one.at) for move in made)
        parts["during" if is_during else "before" if one.at < made[0].began_s else "after"].append(one)
    return list(parts.items())


def _turn_line(name: str, turns: Sequence[Outcome]) -> str:
    known = [ms for turn in turns if (ms := overhead_ms(turn)) is not None]
    cut = sum(turn.failure == CUT for turn in turns)
    shares = " ".join(f"{percentile(known, share):7.0f}" for share in (0.5, 0.9, 0.99))
    missed = len(turns) - len(known) - cut
    return f"{name:>14} {len(turns):6d} {missed:7d} {cut:5d} {shares} {max(known, default=float('nan')):8.0f}"


def overhead_ms(turn: Outcome) -> float | None:
    """None: there was no answer."""
    return None if turn.failure else turn.ms - EXPLAINED_MS


def busy_line(samples: Sequence[Sample], made: Sequence[Move]) -> str:
    during = [one.busy for one in samples if any(move.covers(one.at_s) for move in made)]
    told = f"; during moves {percentile(during, 0.5):.0%}" if during else ""
    return f"this machine busy: p50 {percentile([one.busy for one in samples], 0.5):.0%}{told}"


def trust_line(lateness: Lateness) -> str:
    late_ms = lateness.percentile_ms(0.99)
    trust = "" if late_ms <= LATE_MS else ": this machine was too busy; do not trust the milliseconds above"
    return f"callers' own frames late: p99 {late_ms:.0f} ms{trust}"
