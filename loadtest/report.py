"""A load test as one page that needs nothing else: tables and plots, and the machine that it ran on.

python -m loadtest.report loadtest-results --out loadtest-results/report.html
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve_app.bench.report import Bars, Lines, Table, write

from .caller import percentile
from .figures import KNEE_FACTOR, Record, Step, knee, read, steps
from .pacing import LATE_MS
from .people import STAGES
from .run import RESULTS

SERVER_ROLES = (
    "ingress",
    "haproxy",
    "stt",
    "llm",
    "tts",
    "controller",
    "proxy manager",
    "gcs",
    "raylet",
    "ray, the rest",
)
CLIENT_ROLES = ("callers", "locust")
GIB = 2**30
POINTS = 240
"""Of a curve over time, at most."""


def page(record: Record) -> tuple[list[Table], list[Bars | Lines]]:
    found = steps(record)
    if not found:
        raise ValueError("no number of callers was held for long enough: take a longer --step-s")
    return (
        [machine_table(record.about), callers_table(found), cost_table(found)],
        [*latency_plots(found), stage_bars(found), *cost_plots(found), *time_plots(record)],
    )


# --- tables ---------------------------------------------------------------------------------------------------------


def machine_table(about: dict[str, Any]) -> Table:
    machine = about["machine"]
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "none"
    rows = [
        ("processor", f"{about['cpu']}, {machine['cores']:g} cores that it may use"),
        (
            "memory",
            f"{machine['memory_bytes'] / GIB:.1f} GiB, {machine['free_memory_bytes'] / GIB:.1f} free at the end",
        ),
        ("GPU", gpus),
        ("command", f"python -m loadtest.run {' '.join(about['arguments'])}"),
    ]
    return Table("The machine", ("", ""), rows, "Callers and server shared it.")


def callers_table(found: Sequence[Step]) -> Table:
    headings = (
        "callers",
        "seconds",
        "turns",
        "missed",
        *("turn p50 ms", "p90", "p99"),
        *("barge-in stop p50 ms", "p99"),
        *("sound after it", "refused", "lost"),
        "callers' frames late, p99 ms",
    )
    rows = [
        (
            str(step.sessions),
            f"{step.seconds:.0f}",
            str(len(step.turn_ms) + step.missed),
            str(step.missed),
            *_shares(step.turn_ms, 0.5, 0.9, 0.99),
            *_shares(step.barge_in_ms, 0.5, 0.99),
            str(step.stale),
            str(step.refused),
            str(step.lost),
            f"{step.late_p99_ms:.0f}",
        )
        for step in found
    ]
    return Table("What callers saw", headings, rows, " ".join([knee_words(found), *late_words(found)]))


def knee_words(found: Sequence[Step]) -> str:
    good, bad = knee(found)
    rule = f"no turn missed, nobody lost or refused, turn p90 within {KNEE_FACTOR:g} times that of the first step"
    if bad is None:
        return f"The knee was not reached: {good} callers were served as the first ones were ({rule})."
    if good is None:
        return f"The knee lies below {bad} callers: even they were not served well ({rule})."
    return f"The knee lies between {good} and {bad} callers ({rule})."


def late_words(found: Sequence[Step]) -> list[str]:
    """A warning for each step in which the callers themselves were too slow to be believed."""
    return [
        f"Do not trust the row of {step.sessions}: in {step.late_seconds} seconds of it one caller's frame in a hundred "
        f"was over {LATE_MS:g} ms late, so this machine was measured and not only the server."
        for step in found
        if step.late_seconds
    ]


def cost_table(found: Sequence[Step]) -> Table:
    rows = [("session tier", *(f"{step.cpu_us('ingress') + step.cpu_us('haproxy'):.0f}" for step in found))]
    rows += [(role, *(f"{step.cpu_us(role):.0f}" for step in found)) for role in _present(found)]
    note = "Ingress and HAProxy are the session tier. Scripted engines cost nothing but their waiting."
    headings = ("process", *(f"{step.sessions} callers" for step in found))
    return Table("CPU-microseconds a session-second", headings, rows, note)


def _shares(values: list[float], *shares: float) -> list[str]:
    return [f"{percentile(values, share):.0f}" if values else "-" for share in shares]


def _present(found: Sequence[Step]) -> list[str]:
    return [role for role in (*SERVER_ROLES, *CLIENT_ROLES) if any(role in step.cpu for step in found)]


# --- plots ----------------------------------------------------------------------------------------------------------


def latency_plots(found: Sequence[Step]) -> list[Lines]:
    _, bad = knee(found)
    mark = (float(bad), "past the knee") if bad is not None else None

    def curve(values: Sequence[tuple[int, list[float]]], share: float) -> list[tuple[float, float]]:
        return [(float(sessions), percentile(ms, share)) for sessions, ms in values if ms]

    turns = [(step.sessions, step.turn_ms) for step in found]
    stops = [(step.sessions, step.barge_in_ms) for step in found]
    shares = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))
    return [
        Lines(
            "Latency against sessions: last speech to first sound",
            "ms",
            "callers",
            [(name, curve(turns, share)) for share, name in shares],
            mark,
            "By the callers' clock; 500 ms of it are the silence that ends a turn.",
        ),
        Lines(
            "Barge-in: onset of speech to the last sound of the old answer",
            "ms",
            "callers",
            [(name, curve(stops, share)) for share, name in shares],
            mark,
        ),
    ]


def stage_bars(found: Sequence[Step]) -> Bars:
    groups = [
        (f"{step.sessions} callers, {name}", [percentile(step.stage_ms[stage], share) for stage in STAGES])
        for step in found
        for share, name in ((0.5, "p50"), (0.99, "p99"))
        if all(step.stage_ms[stage] for stage in STAGES)
    ]
    return Bars("Stages of a turn, by the server's account", "ms", STAGES, groups)


def cost_plots(found: Sequence[Step]) -> list[Lines]:
    roles = _present(found)
    cpu = [(role, [(float(step.sessions), step.cpu.get(role, 0.0)) for step in found]) for role in roles]
    rss = [(role, [(float(step.sessions), step.rss_mb.get(role, 0.0)) for step in found]) for role in roles]
    return [
        Lines("CPU by process", "cores", "callers", cpu),
        Lines("Memory by process (RSS)", "MB", "callers", rss),
    ]


def time_plots(record: Record) -> list[Lines]:
    """The test as it went."""
    start = record.paces[0].at
    paces = _thinned([(pace.at - start, float(pace.open)) for pace in record.paces])
    busy: dict[str, list[tuple[float, float]]] = {}
    memory: dict[str, list[tuple[float, float]]] = {}
    for one, next_one in zip(record.samples, record.samples[1:], strict=False):
        if next_one.at < start:
            continue
        for role in ("ingress", "haproxy", "callers"):
            spent = next_one.cpu_s.get(role, 0.0) - one.cpu_s.get(role, 0.0)
            busy.setdefault(role, []).append((next_one.at - start, max(0.0, spent) / (next_one.at - one.at)))
        memory.setdefault("ingress", []).append((next_one.at - start, next_one.rss_mb.get("ingress", 0.0)))
    return [
        Lines("Sessions over time", "open", "seconds", [("sessions", paces)]),
        Lines("CPU over time", "cores", "seconds", [(role, _thinned(curve)) for role, curve in busy.items()]),
        Lines(
            "Memory of the ingress over time", "MB", "seconds", [(r, _thinned(c)) for r, c in memory.items()]
        ),
    ]


def _thinned(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return curve[:: max(1, len(curve) // POINTS)]


def main(arguments: Sequence[str] | None = None) -> None:
    args = argparse.ArgumentParser(
        prog="python -m loadtest.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    args.add_argument("folder", type=Path, nargs="?", default=RESULTS, help="what loadtest.run left")
    args.add_argument("--out", type=Path, help="(default: report.html in the folder)")
    options = args.parse_args(arguments)
    out = options.out or options.folder / "report.html"
    tables, plots = page(read(options.folder))
    write(out, "voice-serve under load", tables, plots)
    print(out)


if __name__ == "__main__":
    main()
