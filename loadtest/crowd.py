"""The process that the callers of a load test live in; locust only counts what happens here.

locust runs on gevent, which replaces the sockets and the clock of its process, and its statistics and web page take
time of their own: callers in it would measure that. So each locust worker has one crowd beside it (`Crowd`), on a loop
of its own. Commands go in as lines of JSON ({"open": name} or {"close": name}), outcomes come out the same way, and
once a second what the crowd itself is worth: how late it sent its frames.

python -m loadtest.crowd --help
"""

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from .pacing import LATE_MS, Lateness
from .people import Habits, Outcome, Person
from .voices import Clip, clips, room_noise

PACE = "frame sent late"
REPORT_S = 1.0
FLUSH_S = 0.1


@dataclass(frozen=True, slots=True)
class Pace:
    """A second of the crowd itself: whether it measures the server or its own machine."""

    at: float
    wanted: int
    """Callers that there should be."""
    open: int
    """That hold a session."""
    frames: int
    p50_ms: float
    p99_ms: float
    cpu: float
    """Of one core."""

    @property
    def is_late(self) -> bool:
        return self.p99_ms > LATE_MS


class Crowd:
    """`say` is called with what happened, in order; it must not block for long."""

    def __init__(
        self,
        url: str,
        voices: Sequence[Clip],
        habits: Habits,
        say: Callable[[Outcome | Pace], None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._url = url
        self._voices = voices
        self._noise = room_noise()
        self._habits = habits
        self._say = say
        self._tasks = tasks
        self._lateness = Lateness()
        self._people: dict[str, tuple[Person, asyncio.Task[None]]] = {}

    def open(self, name: str) -> None:
        if name in self._people:
            return
        person = Person(name, self._url, self._voices, self._noise, self._habits, self._say, self._lateness)
        self._people[name] = person, self._tasks.create_task(person.live(), name=name)

    def close(self, name: str) -> None:
        person = self._people.pop(name, None)
        if person is not None:
            person[1].cancel()

    def close_all(self) -> None:
        for name in list(self._people):
            self.close(name)

    async def watch_itself(self) -> None:
        cpu_s, at = time.process_time(), time.monotonic()
        while True:
            await asyncio.sleep(REPORT_S)
            now, spent = time.monotonic(), time.process_time()
            late = self._lateness
            open_now = sum(person.is_open for person, _ in self._people.values())
            shares = late.percentile_ms(0.5), late.percentile_ms(0.99)
            self._say(
                Pace(now, len(self._people), open_now, late.total, *shares, (spent - cpu_s) / (now - at))
            )
            late.clear()
            cpu_s, at = spent, now


class _Output:
    """Lines that are gathered for a moment: a write a line would cost more than the line."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def say(self, what: Outcome | Pace) -> None:
        self._lines.append(json.dumps(asdict(what)))

    async def run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self.flush()

    def flush(self) -> None:
        if self._lines:
            sys.stdout.write("\n".join(self._lines) + "\n")
            sys.stdout.flush()
            self._lines.clear()


async def _serve(args: argparse.Namespace, voices: Sequence[Clip]) -> None:
    habits = Habits(
        think_s=(args.think_min, args.think_max),
        barge_in_share=args.barge_ins,
        missed_after_s=args.missed_after,
    )
    loop, output, over = asyncio.get_running_loop(), _Output(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        crowd = Crowd(args.url, voices, habits, output.say, tasks)
        pumps = [tasks.create_task(output.run()), tasks.create_task(crowd.watch_itself())]

        def obey(command: dict[str, Any]) -> None:
            if "open" in command:
                crowd.open(command["open"])
            elif "close" in command:
                crowd.close(command["close"])
            else:
                over.set()

        threading.Thread(target=_read, args=(loop, obey), daemon=True).start()
        await over.wait()
        crowd.close_all()
        for pump in pumps:
            pump.cancel()
    output.flush()


def _read(loop: asyncio.AbstractEventLoop, obey: Callable[[dict[str, Any]], None]) -> None:
    for line in sys.stdin:
        loop.call_soon_threadsafe(obey, json.loads(line))
    loop.call_soon_threadsafe(obey, {"over": True})


def add_habits(args: Any) -> None:
    """Options that locust's command line has too."""
    usual = Habits()
    args.add_argument("--think-min", type=float, default=usual.think_s[0], help="seconds before a question")
    args.add_argument("--think-max", type=float, default=usual.think_s[1])
    args.add_argument(
        "--barge-ins", type=float, default=usual.barge_in_share, help="share of answers broken into"
    )
    args.add_argument(
        "--missed-after",
        type=float,
        default=usual.missed_after_s,
        help="seconds without a sound: a missed turn",
    )


def habit_options(args: argparse.Namespace) -> list[str]:
    """The same options for another command line."""
    return [
        f"--think-min={args.think_min}",
        f"--think-max={args.think_max}",
        f"--barge-ins={args.barge_ins}",
        f"--missed-after={args.missed_after}",
    ]


def parser() -> argparse.ArgumentParser:
    args = argparse.ArgumentParser(prog="python -m loadtest.crowd", description=__doc__.split("\n\n", 1)[0])
    args.add_argument("url", help="ws://HOST:PORT/v1/realtime")
    args.add_argument("--audio", type=Path, help="recordings (.flac); without: espeak-ng's voice")
    add_habits(args)
    return args


def main() -> None:
    args = parser().parse_args()
    voices, words = clips(args.audio)
    print(json.dumps({"ready": words}), flush=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(args, voices))


if __name__ == "__main__":
    main()
