"""How many sessions a core carries: ingress and proxy on one core, the callers elsewhere.

For each number of sessions a row of live callers (`lean_callers`): missed turns, overhead, barge-ins, and what a
session costs. CPU-microseconds a session-second is the number to compare: it is the same on a busy machine.

Overhead is the time from the end of speech to the first sound that no set stage explains, as in `bench_turns`. 32 ms
frames end up to 12 ms late of the 500 ms of endpointing, and 20 ms packets up to 20: no server is below that.
"""

import argparse
import multiprocessing
import os
import platform
import time
from dataclasses import dataclass

import numpy as np
import psutil

from . import lean_callers, usage
from .application import Application, application
from .bench_turns import FAST_TOKENS, FIRST_CLAUSE_MS, SILENCE_MS, STAGE_MS
from .caller import percentile
from .command import Commands, add_command, clear_strings, noises, numbers
from .lean_callers import Result, Task, clip_of

NOISE_DBFS = -55.0
ANSWER_WORDS = 10
DRAFTS = 3
"""A turn: the product's default."""
ENGINES = ("stt", "llm", "tts")
IDLE_S = 5.0
HEAD = (
    f"{'sessions':>8} {'turns':>6} {'missed':>6} {'overhead p50':>12} {'p90':>6} {'p99':>6} {'barge-ins':>9} "
    f"{'p50':>6} {'p99':>6} {'stale':>5} | {'us/s ingress':>12} {'haproxy':>8} {'both':>6} {'engines':>8} {'client':>7} "
    f"{'core':>5} {'RSS MB':>7} {'late p99':>8}"
)


@dataclass(frozen=True, slots=True)
class Core:
    """Who has one to himself."""

    number: int | None
    """None: all run where they like."""
    roles: tuple[str, ...] = usage.SESSION_TIER


@dataclass(frozen=True, slots=True)
class Row:
    sessions: int
    result: Result
    cpu_us: dict[str, float]
    """A session-second, by role; "core": the share of one core that those took who have it."""
    rss_mb: float


def add_parser(commands: Commands) -> None:
    command = add_command(
        commands, "sessions", run, "how many sessions a core carries (Linux; always behind HAProxy)"
    )
    command.add_argument("--sessions", type=numbers, default=[10, 25, 50, 75, 100, 150], metavar="N,N,...")
    command.add_argument(
        "--seconds", type=float, default=25.0, help="measured of each row (default: %(default)s)"
    )
    command.add_argument(
        "--pin", action="store_true", help="ingress and proxy on one core, all else on the others"
    )
    command.add_argument(
        "--proxy-apart",
        action="store_true",
        help="with --pin: the ingress alone on its core, as where each replica has one (cluster/)",
    )
    command.add_argument(
        "--over", type=int, metavar="CAP", help="instead: CAP sessions, and as many who are refused"
    )
    command.add_argument(
        "--drafts",
        type=int,
        default=DRAFTS,
        help="answers begun at a pause (default: the product's, %(default)s); with 0 two engines' times are in each turn",
    )


def run(args: argparse.Namespace) -> None:
    over: int | None = args.over
    noise = noises(args)["office-ambience"]
    quiet = noise / np.sqrt(np.mean(noise**2)) * 10 ** (NOISE_DBFS / 20)
    questions = clear_strings(args, quiet)
    clips = tuple(clip_of(question) for question in questions.values())
    changes = {
        "llm": {"scripted": {**FAST_TOKENS["llm"]["scripted"], "answer_words": ANSWER_WORDS}},
        "turn_taking": {"drafts_per_turn": args.drafts},
        "limits": {"max_sessions_per_replica": max(args.sessions) if over is None else over},
    }
    cores = os.sched_getaffinity(0)
    if args.pin and len(cores) == 1:
        raise SystemExit("--pin needs two cores: one for ingress and proxy, one for all else")
    roles = ("ingress",) if args.proxy_apart else usage.SESSION_TIER
    core = Core(max(cores) if args.pin else None, roles)
    with application(args=changes, proxy="haproxy") as app:
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, pinned: {args.pin and roles}, drafts a turn: {args.drafts}"
        )
        print(HEAD, flush=True)
        idle = _idle(core)
        print(f"an idle ingress takes {idle:.1%} of a core; it is in the figures below", flush=True)
        explained = SILENCE_MS + (0.0 if args.drafts else 2 * STAGE_MS + FIRST_CLAUSE_MS)
        rows = []
        for count in [over] if over is not None else args.sessions:
            task = Task(app.realtime, count, args.seconds, clips, clip_of(quiet), explained)
            rows.append(_row(app, task, core))
            _show(rows[-1])
        if over is not None:
            task = Task(app.realtime, over, args.seconds, clips, clip_of(quiet), explained, knocking=over)
            row = _row(app, task, core)
            _show(row)
            times = row.result.refused_ms
            print(
                f"{over} more callers tried {row.result.refused.total()} times; close codes {dict(row.result.refused)}, after "
                f"p50 {percentile(times, 0.5):.0f} ms, p99 {percentile(times, 0.99):.0f} ms"
            )
    if len(rows) > 1:
        slope = np.polyfit([row.sessions for row in rows], [row.rss_mb for row in rows], 1)[0]
        print(f"memory a session: {slope:.2f} MB of the ingress (slope of RSS over the rows)")


def _idle(core: Core) -> float:
    found = _settled(core)
    before = usage.sample(found).cpu_s["ingress"]
    time.sleep(IDLE_S)
    return (usage.sample(found).cpu_s["ingress"] - before) / IDLE_S


def _settled(core: Core) -> list[tuple[psutil.Process, str]]:
    """The processes of the application as they are now: HAProxy begins anew when Serve changes its list of replicas.

    What is not to be on `core` is pinned to the others.
    """
    if core.number is not None:
        usage.pin(os.getpid(), core.roles, {core.number})
    return list(usage.below(os.getpid()))


def _row(app: Application, task: Task, core: Core) -> Row:
    found = _settled(core)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    client = context.Process(target=lean_callers.main, args=(task, theirs))
    client.start()
    theirs.close()
    found.append((psutil.Process(client.pid), "client"))
    try:
        assert ours.recv() == "begun"
        before = usage.sample(found)
        assert ours.recv() == "over"
        after = usage.sample(found)
        result: Result = ours.recv()
    finally:
        client.join(10)
        client.kill()
    app.until_empty()
    lasted_s = after.at - before.at
    spent = {role: after.cpu_s[role] - before.cpu_s[role] for role in after.cpu_s}
    spent["engines"] = sum(spent.get(role, 0.0) for role in ENGINES)
    cpu_us = {role: 1e6 * s / lasted_s / task.sessions for role, s in spent.items()}
    cpu_us["core"] = sum(spent[role] for role in core.roles) / lasted_s
    return Row(task.sessions, result, cpu_us, after.rss_mb["ingress"])


def _show(row: Row) -> None:
    result, cpu = row.result, row.cpu_us
    overhead = " ".join(f"{percentile(result.overhead_ms, share):6.0f}" for share in (0.9, 0.99))
    barge = " ".join(f"{percentile(result.barge_in_ms, share):6.0f}" for share in (0.5, 0.99))
    print(
        f"{row.sessions:8d} {result.turns:6d} {result.missed:6d} {percentile(result.overhead_ms, 0.5):12.0f} {overhead} "
        f"{len(result.barge_in_ms):9d} {barge} {result.stale_chunks:5d} | {cpu['ingress']:12.0f} {cpu['haproxy']:8.0f} "
        f"{cpu['ingress'] + cpu['haproxy']:6.0f} {cpu['engines']:8.0f} {cpu['client']:7.0f} {cpu['core']:5.0%} "
        f"{row.rss_mb:7.0f} {percentile(result.late_ms, 0.99):8.1f}"
    )
    if result.lost or result.unasked:
        print(
            f"         sessions lost: {dict(result.lost)}; turns heard where nobody spoke: {result.unasked}"
        )
    print(f"         answering {result.answering_share:.0%} of the time", flush=True)
