"""A load test of the application on scripted engines: `make loadtest`.

Starts it behind HAProxy, lets locust bring in more and more callers, samples what every process costs meanwhile, and
leaves a folder for `python -m loadtest.report` and `python -m loadtest.capacity`.

python -m loadtest.run --sessions 10,25,40 --step-s 30
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from serve_app import machine

from . import usage
from .application import ROOT, SCRIPTED, Application, application

ANSWER_WORDS = 16
"""At 0.3 s a word 4.8 s: with the callers' habits the agent speaks for 30% of the time."""
ARGS = {"llm": {"scripted": {"first_token_s": 0.1, "tokens_per_s": 50, "answer_words": ANSWER_WORDS}}}
SPEECH = ROOT.parent / "shared" / "audio" / "speech"
RESULTS = Path("loadtest-results")
OUTCOMES, SAMPLES, RUN = "outcomes.jsonl", "samples.jsonl", "run.json"
SPARE_S = 60.0


def locust(app: Application, args: argparse.Namespace) -> None:
    """Raises subprocess.CalledProcessError for anything but failures among what it counted."""
    steps = [int(part) for part in args.sessions.split(",")]
    command = [
        *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py")),
        *(
            "--headless",
            "--only-summary",
            "--host",
            app.realtime,
            "--record",
            str(args.out.resolve() / OUTCOMES),
        ),
        *("--pattern", "steps", "--steps", args.sessions, "--pattern-s", str(args.step_s)),
        *("--barge-ins", str(args.barge_ins), "--audio", str(args.audio.resolve())),
        *("--html", str(args.out.resolve() / "locust.html")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    limit = len(steps) * args.step_s + SPARE_S
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=limit, check=False)
    if done.returncode not in (0, 1):
        raise subprocess.CalledProcessError(done.returncode, command)


def run(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    for name in (OUTCOMES, SAMPLES, RUN):
        (args.out / name).unlink(missing_ok=True)
    with application(args.config, ARGS, proxy="haproxy") as app:
        if args.pin_core is not None:
            usage.pin(os.getpid(), usage.SESSION_TIER, {args.pin_core})
        with usage.sampled(os.getpid()) as samples:
            locust(app, args)
    lines = "\n".join(json.dumps(asdict(sample)) for sample in samples)
    (args.out / SAMPLES).write_text(lines + "\n")
    about = {"machine": asdict(machine.look(ROOT)), "cpu": usage.cpu_name(), "arguments": sys.argv[1:]}
    (args.out / RUN).write_text(json.dumps(about | {"step_s": args.step_s}))
    print(f"recorded in {args.out}; python -m loadtest.report {args.out}")


def parser() -> argparse.ArgumentParser:
    args = argparse.ArgumentParser(
        prog="python -m loadtest.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    args.add_argument("--sessions", default="10,25,40", metavar="N,N,...", help="callers of each step")
    args.add_argument(
        "--step-s", type=float, default=30.0, help="seconds of each step (default: %(default)s)"
    )
    args.add_argument("--barge-ins", type=float, default=0.2, help="share of answers that are broken into")
    args.add_argument("--audio", type=Path, default=SPEECH, help="recordings; without: espeak-ng's voice")
    args.add_argument("--config", type=Path, default=SCRIPTED)
    args.add_argument(
        "--pin-core", type=int, help="ingress and proxy alone on this core, all else on the others"
    )
    args.add_argument("--out", type=Path, default=RESULTS, help="(default: %(default)s)")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    run(parser().parse_args(arguments))


if __name__ == "__main__":
    main()
