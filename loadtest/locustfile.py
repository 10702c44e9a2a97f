"""locust users that hold realtime sessions.

    locust -f loadtest/locustfile.py --host ws://127.0.0.1:8000/v1/realtime              # web page on :8089
    locust -f loadtest/locustfile.py --headless -u 40 -r 5 -t 5m --host ...
    locust -f loadtest/locustfile.py --master;  locust -f loadtest/locustfile.py --worker   # on as many machines as needed
    ... --pattern ramp --pattern-s 120 --hold-s 300

A user is a name: its session is held by this worker's crowd (`loadtest.crowd` says why), a process of its own that this
one starts, and every outcome of it is an entry in locust's statistics; the sum and the charts are of turns. Rows of kind `session`, `turn`, `stage` and
`barge-in` are in milliseconds; a missed turn and a lost session are failures; a refused one (1013) is what a full server
should say and is counted in a row of its own. The row `client / frame sent late` is the crowd's own: its p99 of each
second. Where it fails, the machine of the callers was measured, not the server.
"""

import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import gevent
from locust import LoadTestShape, User, constant, events, stats, task
from locust.env import Environment
from locust.runners import MasterRunner

from loadtest.crowd import PACE, add_habits, habit_options
from loadtest.pacing import LATE_MS
from loadtest.people import BARGE_IN, STAGE, STAGES, STALE, TURN
from loadtest.shapes import Flat, Profile, Ramp, Soak, Steps

ROOT = Path(__file__).resolve().parent.parent
SHARED_SPEECH = ROOT.parent / "shared" / "audio" / "speech"
log = logging.getLogger("loadtest")

stats.PERCENTILES_TO_STATISTICS = [0.9, 0.95, 0.99]
stats.PERCENTILES_TO_REPORT = [0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0]
stats.PERCENTILES_TO_CHART = [0.5, 0.99]


class TooLate(Exception):
    """The callers' own process sent its frames later than a frame is long."""


class Failed(Exception):
    """What a caller saw go wrong."""


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    # A master sends the options to its workers as they are: texts and numbers alone arrive.
    group = parser.add_argument_group("realtime sessions")
    group.add_argument(
        "--audio",
        default=str(SHARED_SPEECH),
        help="recordings (.flac); where there are none, espeak-ng's voice",
    )
    add_habits(group)
    group.add_argument("--pattern", choices=("flat", "ramp", "soak", "steps"), default="flat")
    group.add_argument("--steps", default="10,25,40", help="of the pattern steps: callers of each step")
    group.add_argument(
        "--pattern-s", type=float, default=60.0, help="seconds of a ramp's rise, or of each step"
    )
    group.add_argument(
        "--hold-s", type=float, default=900.0, help="seconds of a soak, or at the top of a ramp"
    )
    group.add_argument("--record", help="a file that every outcome is appended to, for loadtest.report")


def profile(options: Any) -> Profile:
    users, rate = int(options.num_users or 1), float(options.spawn_rate or 1)
    match options.pattern:
        case "ramp":
            return Ramp(users, options.pattern_s, options.hold_s)
        case "soak":
            return Soak(users, options.hold_s, rate)
        case "steps":
            return Steps(tuple(int(part) for part in options.steps.split(",")), options.pattern_s)
        case _:
            return Flat(users, rate, options.run_time)


class Shape(LoadTestShape):
    """The profile that the command line or the web page asks for."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        assert self.runner is not None
        return profile(self.runner.environment.parsed_options)(self.get_run_time())


# --- the crowd beside this worker -----------------------------------------------------------------------------------


class CrowdProcess:
    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        options: Any = environment.parsed_options
        command = [sys.executable, "-m", "loadtest.crowd", environment.host, *habit_options(options)]
        if Path(options.audio).is_dir():
            command.append(f"--audio={options.audio}")
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths},
        )
        self._record = Path(options.record).open("a") if options.record else None  # noqa: SIM115  # `stop` closes it
        ready = json.loads(self._out.readline())
        log.info("callers speak with %s", ready["ready"])
        self._reader = gevent.spawn(self._read)

    @property
    def _out(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def tell(self, **command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join(5)
        if self._record is not None:
            self._record.close()

    def _read(self) -> None:
        for line in self._out:
            if self._record is not None:
                self._record.write(line)
            outcome = json.loads(line)
            row = of_pace(outcome) if "wanted" in outcome else of_outcome(outcome)
            if row.kind == TURN:
                self._environment.events.request.fire(
                    request_type=row.kind,
                    name=row.name,
                    response_time=row.ms,
                    response_length=0,
                    exception=row.error,
                    context={},
                )
            else:
                self._note(row)

    def _note(self, row: "Row") -> None:
        """Into its own row alone: the sum of all, which the charts show, is of turns."""
        statistics = self._environment.stats
        statistics.get(row.name, row.kind).log(row.ms, 0)
        if row.error is not None:
            statistics.log_error(row.kind, row.name, row.error)


@dataclass(frozen=True, slots=True)
class Row:
    """Of locust's statistics, and one entry in it."""

    kind: str
    name: str
    ms: float
    error: Exception | None


def of_outcome(outcome: dict[str, Any]) -> Row:
    name = str(outcome["name"])
    error = Failed(outcome["failure"]) if outcome["failure"] else None
    if name.startswith(STAGE):
        stage = name.removeprefix(STAGE)  # numbered, for locust sorts by name
        return Row("stage", f"turn {STAGES.index(stage) + 1}: {stage}", outcome["ms"], error)
    kind = name if name == TURN else "barge-in" if name in (BARGE_IN, STALE) else "session"
    return Row(kind, name, outcome["ms"], error)


def of_pace(pace: dict[str, Any]) -> Row:
    """A second of the crowd itself; a late one is a failure, and is said."""
    if pace["p99_ms"] <= LATE_MS:
        return Row("client", PACE, pace["p99_ms"], None)
    log.warning(
        "the callers' own frames are late (p99 %.0f ms, %d sessions, %.0f%% of a core): what is measured now is "
        "this machine; add workers or machines",
        pace["p99_ms"],
        pace["open"],
        pace["cpu"] * 100,
    )
    return Row(
        "client", PACE, pace["p99_ms"], TooLate(f"p99 over {LATE_MS:g} ms: the callers' machine is too slow")
    )


_crowd: list[CrowdProcess] = []
"""One while a test runs on this worker."""


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, MasterRunner):
        _crowd.append(CrowdProcess(environment))


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    while _crowd:
        _crowd.pop().stop()


class RealtimeCaller(User):
    wait_time = constant(0)
    _count = 0

    def on_start(self) -> None:
        RealtimeCaller._count += 1
        self.name = f"{os.getpid()}-{RealtimeCaller._count}"
        _crowd[0].tell(open=self.name)

    def on_stop(self) -> None:
        if _crowd:
            _crowd[0].tell(close=self.name)

    @task
    def hold_the_session(self) -> None:
        gevent.sleep(3600)
