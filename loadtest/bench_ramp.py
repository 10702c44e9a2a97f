"""Callers who become many and few again, while every stage grows and shrinks with them: 1 -> N -> 1 replicas.

A caller is a person: asks, listens, thinks, asks again, and hangs up between two turns when the ramp wants fewer. Who is
cut off calls again at once, as a person would; each time is counted. Replicas are what Serve's controller says, twice a
second. `--redeploy` replaces all replicas of the running application while most callers are there.
"""

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from ray import serve

from serve_app.audio.pcm import Audio
from serve_app.client.connection import NotConnected, SessionEnded

from .application import APPLICATION, RAMP, Application, application, serve_run
from .bench_turns import SILENCE_MS, STAGE_MS, one_turn
from .caller import Caller, caller, percentile
from .command import Commands, add_command, strings
from .ramp_page import write_page

DEPLOYMENTS = ("Ingress", "SpeechToText", "LanguageModel", "TextToSpeech")
FIRST_CLAUSE_MS = 60.0
"""Three tokens after the first at 50 a second, as config.ramp.yaml has them."""
EXPLAINED_MS = SILENCE_MS + 2 * STAGE_MS + FIRST_CLAUSE_MS
"""From the end of speech to the first sound, of the endpointing and the set stages alone."""
FEW = 2
"""Callers before and after."""
ANSWER_MS = 10_000.0
"""A turn without a sound by then is missed."""
FULL = 1013


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
class Turn:
    at_s: float
    overhead_ms: float | None
    """None: missed."""


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    callers: int
    running: Mapping[str, int]
    stopping: Mapping[str, int]
    """Replicas that are draining."""

    @property
    def is_small(self) -> bool:
        return all(self.running[name] == 1 and not self.stopping[name] for name in DEPLOYMENTS)


@dataclass
class Crowd:
    """The callers and what happened to them."""

    url: str
    questions: list[Audio]
    began: float
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    here: "list[Person]" = field(default_factory=list)
    sessions: int = 0
    turns: list[Turn] = field(default_factory=list)
    lost: list[tuple[float, int]] = field(default_factory=list)
    """When, and the WebSocket's code."""
    unreachable: list[float] = field(default_factory=list)
    """Calls that did not come through."""

    def now_s(self) -> float:
        return time.monotonic() - self.began

    async def follow(self, ramp: Ramp, until: asyncio.Event) -> None:
        """Callers come and go as the ramp wants, until it is over and `until` is set; then all hang up."""
        async with asyncio.TaskGroup() as calls:
            while not (self.now_s() > ramp.corners[-1] and until.is_set()):
                staying = [person for person in self.here if not person.is_leaving]
                for _ in range(len(staying), ramp.wanted(self.now_s())):
                    person = Person(self)
                    self.here.append(person)
                    calls.create_task(person.call())
                for person in self.dice.sample(staying, max(0, len(staying) - ramp.wanted(self.now_s()))):
                    person.is_leaving = True
                await asyncio.sleep(0.25)
            for person in self.here:
                person.is_leaving = True


class Person:
    def __init__(self, crowd: Crowd) -> None:
        self.is_leaving = False
        self._crowd = crowd
        self._waits_for_answer = False

    async def call(self) -> None:
        """Holds a session, and another one when it is lost, until told to leave."""
        crowd = self._crowd
        while not self.is_leaving:
            try:
                async with caller(crowd.url) as one:
                    crowd.sessions += 1
                    while not self.is_leaving:
                        await self._turn(one)
            except SessionEnded as ended:
                crowd.lost.append((crowd.now_s(), ended.code))
                if self._waits_for_answer:
                    crowd.turns.append(Turn(crowd.now_s(), None))
            except NotConnected:
                crowd.unreachable.append(crowd.now_s())
                await asyncio.sleep(0.5)
        crowd.here.remove(self)

    async def _turn(self, one: Caller) -> None:
        crowd = self._crowd
        self._waits_for_answer = True
        overhead_ms = None
        with suppress(TimeoutError):
            total_ms = (await one_turn(one, crowd.dice.choice(crowd.questions))).client_total_ms
            if total_ms <= ANSWER_MS:
                overhead_ms = total_ms - EXPLAINED_MS
        crowd.turns.append(Turn(crowd.now_s(), overhead_ms))
        self._waits_for_answer = False
        await asyncio.sleep(crowd.dice.uniform(1.0, 3.0))


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
            len(crowd.here),
            {name: counted["RUNNING"] for name, counted in states.items()},
            {name: counted["STOPPING"] for name, counted in states.items()},
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
    app: Application, questions: list[Audio], ramp: Ramp, settle_s: float, *, redeploy: bool
) -> tuple[Crowd, list[Sample]]:
    crowd = Crowd(app.realtime, questions, time.monotonic())
    samples: list[Sample] = []
    settled = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch(crowd, samples, ramp, settled, settle_s))
        tasks.create_task(crowd.follow(ramp, settled))
        if redeploy:
            tasks.create_task(redeploy_at(app, crowd, ramp.corners[2] + 3, settled))
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
    env = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(args.drain_s)}
    questions = list(strings(args).values())
    with application(RAMP, proxy="haproxy", env=env) as app:
        crowd, samples = asyncio.run(measure(app, questions, ramp, args.settle_s, redeploy=args.redeploy))
    happened = ", redeployed at the height" if args.redeploy else ""
    title = f"{FEW} -> {args.sessions} -> {FEW} callers, {args.drain_s:g} s of draining{happened}"
    lines = [*replica_lines(samples, ramp), "", *session_lines(crowd), "", *turn_lines(crowd, ramp)]
    print("\n".join([title, "", *lines]))
    if args.page is not None:
        marks = [(at, f"lost ({code})") for at, code in crowd.lost]
        if args.redeploy:
            marks.append((ramp.corners[2] + 3, "redeploy"))
        write_page(args.page, title, samples, [(t.at_s, t.overhead_ms) for t in crowd.turns], marks, lines)
        print(f"\nplots: {args.page}")


def replica_lines(samples: list[Sample], ramp: Ramp) -> Iterator[str]:
    yield f"{'replicas':>14} {'before':>7} {'most':>5} {'after':>6}   grew at   one again at"
    for name in DEPLOYMENTS:
        counts = [(s.at_s, s.running[name]) for s in samples]
        grew = next((f"{at:.0f} s" for at, n in counts if n > 1), "never")
        small = next(
            (f"{s.at_s:.0f} s" for s in samples if s.at_s > ramp.corners[3] and s.running[name] == 1), "never"
        )
        most = max(n for _, n in counts)
        yield f"{name:>14} {counts[0][1]:7d} {most:5d} {counts[-1][1]:6d} {grew:>9} {small:>14}"


def session_lines(crowd: Crowd) -> Iterator[str]:
    codes = Counter(code for _, code in crowd.lost)
    refused = codes.pop(FULL, 0)
    said = ", ".join(f"{n} x {code}" for code, n in sorted(codes.items()))
    lost = f"lost {codes.total()}" + (f" ({said})" if said else "")
    yield f"sessions {crowd.sessions}, {lost}, refused {refused}, calls that did not come through {len(crowd.unreachable)}"


def turn_lines(crowd: Crowd, ramp: Ramp) -> Iterator[str]:
    yield f"{'overhead, ms':>14} {'turns':>6} {'missed':>7} {'p50':>7} {'p90':>7} {'p99':>7}"
    phases = dict.fromkeys(ramp.phase(at) for at in ramp.corners)
    for phase in [*phases, "all"]:
        turns = [turn for turn in crowd.turns if phase in (ramp.phase(turn.at_s), "all")]
        known = [turn.overhead_ms for turn in turns if turn.overhead_ms is not None]
        shares = " ".join(f"{percentile(known, share):7.0f}" for share in (0.5, 0.9, 0.99))
        yield f"{phase:>14} {len(turns):6d} {len(turns) - len(known):7d} {shares}"
