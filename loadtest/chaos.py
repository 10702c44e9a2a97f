"""What callers notice when each part of the application dies, freezes or is cut off: `make chaos`.

The application runs with two replicas of every deployment on two nodes of one machine, behind HAProxy, under live
callers. One fault after the other strikes; between two of them the application has to be whole again. Redis is struck
in an application that keeps its sessions there, where redis-server is installed. Not for CI: it takes minutes, and kills
processes (its own).

python -m loadtest.chaos --only kill-stt,freeze-llm
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray import serve

from . import usage
from .application import APPLICATION, ROOT, Application, application
from .faults import FAULTS, Fault, Nodes, Place
from .ledger import Ledger, TurnSeen
from .pacing import LATE_MS, Lateness
from .people import CUT, LOST, RESUMED, STALE, Habits, Outcome, Person
from .redis_server import NoRedis, RedisServer, redis_server
from .relay import relay_to
from .voices import clips, room_noise

CONFIG = ROOT / "loadtest" / "config.chaos.yaml"
SPEECH = ROOT.parent / "shared" / "audio" / "digits"
HABITS = Habits(think_s=(0.5, 2.0), barge_in_share=0.1, missed_after_s=20.0, again_after_s=(0.2, 1.0))
SLOW_S = 3.0
"""An answer that begins so late is not full service."""
QUIET_S = 6.0
"""Full service for so long, and the fault is over."""
WATCH_S = 45.0
"""A fault is watched for no longer."""
WHOLE_WITHIN_S = 40.0
PROXY_KNOWS_S = 3.0
"""So long after Serve the proxy learns of a replica."""
ASKED_ITEMS = 8
RETRIEVED_WITHIN_S = 5.0
POLL_S = 0.2
REDIS_URL = "VOICE_SERVE_REDIS_URL"
"""resume.redis_url_env"""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    what: str
    lost: int
    """Sessions."""
    codes: str
    """With which they were closed."""
    resumed: int
    turns: int
    turns_lost: int
    """That ended in neither an answer nor an apology."""
    apologies: int
    longest_silence_s: float
    back_s: float | None
    """From the fault to full service, as the callers see it; None: not while it was watched."""
    replaced_s: float | None
    """Until every deployment had all its replicas again; None as above."""
    intact: int
    """Callers whose conversation the server still knew in full."""
    callers: int


HEAD = (
    f"{'fault':16} {'sessions lost':>13} {'resumed':>7} {'turns':>5} {'lost':>4} {'apologies':>9} "
    f"{'longest silence s':>17} {'full service s':>14} {'replaced s':>10} {'history intact':>14}  what"
)


def line_of(row: Row) -> str:
    intact = f"{row.intact} of {row.callers}"
    return (
        f"{row.name:16} {row.lost:13d} {row.resumed:7d} {row.turns:5d} {row.turns_lost:4d} {row.apologies:9d} "
        f"{row.longest_silence_s:17.1f} {_seconds(row.back_s):>14} {_seconds(row.replaced_s):>10} {intact:>14}  "
        + "; ".join(filter(None, (row.what, row.codes)))
    )


def _seconds(value: float | None) -> str:
    return "not yet" if value is None else f"{value:.1f}"


def is_bad(turn: TurnSeen) -> bool:
    return bool(turn.failure) or turn.is_apology or turn.silence_s > SLOW_S


def back_after(struck_at: float, turns: Sequence[TurnSeen], reopened_at: float) -> float:
    """Seconds until the last caller who noticed anything had an answer again: 0 where nobody did."""
    worst = max((turn.ended_at + turn.silence_s for turn in turns if is_bad(turn)), default=struck_at)
    return max(0.0, worst - struck_at, reopened_at - struck_at)


# --- the callers ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Callers:
    people: list[tuple[Person, Ledger]]
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def all_open(self) -> bool:
        return all(person.is_open for person, _ in self.people)

    def turns_since(self, at: float) -> list[TurnSeen]:
        return [
            turn for _, ledger in self.people for turn in ledger.turns if turn.ended_at + turn.silence_s >= at
        ]

    def count_since(self, name: str, at: float) -> int:
        return sum(outcome.name == name and outcome.at >= at for outcome in self.outcomes)

    def codes_since(self, at: float) -> str:
        return ", ".join(sorted({one.failure for one in self.outcomes if one.name == LOST and one.at >= at}))

    async def intact(self) -> int:
        """How many conversations the server knows as their callers do; those that began anew are not."""
        asked = {id(ledger): list(ledger.items)[-ASKED_ITEMS:] for _, ledger in self.people}
        for person, ledger in self.people:
            ledger.shown.clear()
            if person.line is not None:
                for item_id in asked[id(ledger)]:
                    person.line.tell("conversation.item.retrieve", item_id=item_id)
        for _ in range(int(RETRIEVED_WITHIN_S / POLL_S)):
            if all(set(asked[id(ledger)]) <= set(ledger.shown) for _, ledger in self.people):
                break
            await asyncio.sleep(POLL_S)
        intact = sum(
            not ledger.forgotten and ledger.is_intact(asked[id(ledger)]) for _, ledger in self.people
        )
        for _, ledger in self.people:
            ledger.forgotten = 0
        return intact


class Replicas:
    """Whether Serve has all the replicas that it should, asked in a thread: the controller may be dead."""

    def __init__(self) -> None:
        self.whole_since: float | None = None
        self.broken_at: float | None = None

    async def watch(self) -> None:
        while True:
            is_whole = await asyncio.to_thread(_is_whole)
            if not is_whole:
                self.whole_since, self.broken_at = None, time.monotonic()
            elif self.whole_since is None:
                self.whole_since = time.monotonic()
            await asyncio.sleep(0.3)

    async def until_whole(self) -> None:
        for _ in range(int(WHOLE_WITHIN_S / POLL_S)):
            if self.whole_since is not None:
                return
            await asyncio.sleep(POLL_S)


def _is_whole() -> bool:
    try:
        found = serve.status().applications[APPLICATION]
    except Exception:  # the controller is dead, or comes back: Ray has a dozen ways to say so
        return False
    wanted = {
        one["name"]: {"RUNNING": one["num_replicas"]} for one in _config()["applications"][0]["deployments"]
    }
    running = {
        name: {str.__str__(state): count for state, count in one.replica_states.items() if count}
        for name, one in found.deployments.items()
    }
    return found.status == "RUNNING" and running == wanted


def _config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    return config


# --- one fault ------------------------------------------------------------------------------------------------------


async def suffer(fault: Fault, place: Place, callers: Callers, replicas: Replicas) -> Row:
    struck_at = time.monotonic()
    for _, ledger in callers.people:
        ledger.forgotten = 0
    reopened_at = struck_at
    async with asyncio.TaskGroup() as tasks:
        strike = tasks.create_task(_struck(fault, place))
        quiet_since = struck_at
        while (now := time.monotonic()) < struck_at + WATCH_S:
            await asyncio.sleep(POLL_S)
            if not callers.all_open:
                reopened_at = time.monotonic()
            is_waiting = any(
                is_bad(turn) and turn.ended_at + turn.silence_s > quiet_since
                for turn in callers.turns_since(quiet_since)
            )
            if not callers.all_open or is_waiting or not strike.done() or replicas.whole_since is None:
                quiet_since = now
            if now - quiet_since > QUIET_S and now - struck_at > 2 * QUIET_S:
                break
    turns = callers.turns_since(struck_at)
    is_back = callers.all_open and not any(
        is_bad(turn) for turn in callers.turns_since(time.monotonic() - 1.0)
    )
    return Row(
        fault.name,
        "; ".join(filter(None, (fault.what, strike.result(), _failures(turns)))),
        callers.count_since(LOST, struck_at),
        callers.codes_since(struck_at),
        callers.count_since(RESUMED, struck_at),
        len(turns),
        sum(bool(turn.failure) and not turn.is_apology for turn in turns),
        sum(turn.is_apology for turn in turns),
        max((turn.silence_s for turn in turns if turn.failure != CUT), default=0.0),
        back_after(struck_at, turns, reopened_at) if is_back else None,
        _replaced(replicas, struck_at),
        await callers.intact(),
        len(callers.people),
    )


def _failures(turns: Sequence[TurnSeen]) -> str:
    """How turns were lost; "" where none was."""
    counted = Counter(turn.failure for turn in turns if turn.failure)
    return ", ".join(f"{count} x {failure}" for failure, count in counted.items())


async def _struck(fault: Fault, place: Place) -> str | None:
    """What the fault has to tell, or what went wrong with it; the others are still to be tried."""
    try:
        return await fault.strike(place)
    except Exception as error:
        return f"NOT DONE: {type(error).__name__}: {error}"


def _replaced(replicas: Replicas, struck_at: float) -> float | None:
    if replicas.whole_since is None:
        return None
    return max(0.0, replicas.whole_since - struck_at)


async def until_whole(callers: Callers, replicas: Replicas) -> None:
    deadline = time.monotonic() + WHOLE_WITHIN_S
    while time.monotonic() < deadline:
        recent = callers.turns_since(time.monotonic() - QUIET_S)
        is_calm = recent and not any(is_bad(turn) for turn in recent)
        has_spoken = all(ledger.items for _, ledger in callers.people)  # there is something to be forgotten
        if callers.all_open and has_spoken and replicas.whole_since is not None and is_calm:
            return
        await asyncio.sleep(POLL_S)


async def run(
    faults: Sequence[Fault], count: int, minutes: float, audio: Path | None, place: Place
) -> list[Row]:
    voices, words = await asyncio.to_thread(clips, audio)
    print(f"{count} callers with {words}", flush=True)
    over_at = time.monotonic() + minutes * 60
    rows: list[Row] = []
    async with asyncio.TaskGroup() as tasks:
        callers, replicas = Callers([]), Replicas()
        noise, lateness, apology = room_noise(), Lateness(), _config()["applications"][0]["args"]["apology"]
        url = f"ws://127.0.0.1:{place.relay.port}/v1/realtime"
        for number in range(count):
            ledger = Ledger(apology)
            person = Person(
                f"caller {number}", url, voices, noise, HABITS, callers.outcomes.append, lateness, ledger
            )
            callers.people.append((person, ledger))
        running = [tasks.create_task(replicas.watch())]
        await replicas.until_whole()  # else all callers would sit on the replica that came first
        await asyncio.sleep(PROXY_KNOWS_S)
        running += [tasks.create_task(person.live()) for person, _ in callers.people]
        await until_whole(callers, replicas)
        print(HEAD, flush=True)
        for fault in faults:
            if time.monotonic() > over_at - WATCH_S / 2:
                print(f"{fault.name:16} not tried: {minutes:g} minutes are over", flush=True)
                continue
            rows.append(await suffer(fault, place, callers, replicas))
            print(line_of(rows[-1]), flush=True)
            await until_whole(callers, replicas)
        for task in running:
            task.cancel()
    late_ms = lateness.percentile_ms(0.99)
    trust = "" if late_ms <= LATE_MS else ": this machine was too busy; do not trust the seconds above"
    print(f"callers' own frames late: p99 {late_ms:.0f} ms{trust}")
    print(f"chunks of an interrupted answer: {callers.count_since(STALE, 0.0)}")
    return rows


async def behind_relay(
    faults: Sequence[Fault],
    args: argparse.Namespace,
    app: Application,
    nodes: Nodes,
    redis: RedisServer | None,
) -> None:
    async with relay_to("127.0.0.1", app.port) as relay:
        await run(faults, args.callers, args.minutes, args.audio, Place(app, nodes, relay, redis))


def faults_named(names: str) -> list[Fault]:
    known = {fault.name: fault for fault in FAULTS}
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no fault {', '.join(unknown)}; known: {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def parser() -> argparse.ArgumentParser:
    args = argparse.ArgumentParser(
        prog="python -m loadtest.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="faults:\n" + "\n".join(f"  {fault.name:16} {fault.what}" for fault in FAULTS),
    )
    args.add_argument("--only", type=faults_named, default=list(FAULTS), metavar="FAULT,FAULT")
    args.add_argument("--callers", type=int, default=20)
    args.add_argument(
        "--minutes", type=float, default=8.0, help="no further fault after so long (default: 8)"
    )
    args.add_argument("--audio", type=Path, default=SPEECH, help="recordings; without: espeak-ng's voice")
    return args


def strike_all(faults: Sequence[Fault], args: argparse.Namespace, redis: RedisServer | None = None) -> None:
    """One application, which all the faults strike."""
    nodes = Nodes()
    changes = {"resume": {"store": "redis"}} if redis is not None else None
    env = {REDIS_URL: redis.url} if redis is not None else None
    left: list[psutil.Process] = []
    try:
        with application(CONFIG, changes, proxy="haproxy", env=env, cluster=nodes.running) as app:
            try:
                asyncio.run(behind_relay(faults, args, app, nodes, redis))
            finally:
                left = [process for process, role in usage.below(os.getpid()) if role == "haproxy"]
    finally:
        for (
            process
        ) in left:  # one that came after a killed one outlives its manager, and holds the statistics ports
            with suppress(psutil.NoSuchProcess):
                process.kill()


def main() -> None:
    args = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else nobody would end the cluster
    usual = [fault for fault in args.only if not fault.needs_redis]
    others = [fault for fault in args.only if fault.needs_redis]
    if usual:
        strike_all(usual, args)
    if others:
        try:
            with redis_server() as redis:
                strike_all(others, args, redis)
        except NoRedis as error:
            for fault in others:
                print(f"{fault.name:16} not tried: {error}")


if __name__ == "__main__":
    main()
