"""Benchmarks of a real application on Ray Serve: each starts it, calls it as live callers do, prints, and ends it.

python -m loadtest.bench turns --proxy haproxy --sessions 10
"""

import argparse
from collections.abc import Callable

from . import (
    bench_barge_in,
    bench_cancel,
    bench_churn,
    bench_drafts,
    bench_espeak_words,
    bench_frame_cost,
    bench_gpu,
    bench_interims,
    bench_ramp,
    bench_sessions,
    bench_soak,
    bench_turns,
    bench_vanish,
    bench_warm,
    bench_words,
)

BENCHMARKS = (
    bench_turns,
    bench_sessions,
    bench_frame_cost,
    bench_barge_in,
    bench_words,
    bench_espeak_words,
    bench_interims,
    bench_cancel,
    bench_churn,
    bench_soak,
    bench_gpu,
    bench_drafts,
    bench_ramp,
    bench_vanish,
    bench_warm,
)
"""As `--help` lists them."""


def main() -> None:
    args = parser().parse_args()
    run: Callable[[argparse.Namespace], None] = args.run
    run(args)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m loadtest.bench", description=__doc__)
    commands = whole.add_subparsers(required=True, metavar="benchmark")
    for benchmark in BENCHMARKS:
        benchmark.add_parser(commands)
    return whole


if __name__ == "__main__":
    main()
