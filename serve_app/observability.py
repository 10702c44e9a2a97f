"""What an operator sees of a session: one log line a turn, histograms of its stages, and, if asked for, its facts.

The stages of a turn are cut in `conversation.timeline`, so the log, the metrics and the wire show the same numbers.
Metrics go through Ray, which serves them to Prometheus with the replica's labels.
"""

import asyncio
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from ray.util.metrics import Counter, Gauge, Histogram

from .conversation.commands import ResponseDone, TranscriptCompleted, TranscriptFailed
from .conversation.events import Event, Settings
from .conversation.parameters import Parameters
from .realtime.session_config import SessionKind
from .session.replay import start_record, to_record
from .session.resumption import Lease
from .session.stages import PrefillOutcome
from .tracing import trace_turn

log = logging.getLogger("voice_serve.turn")
server_log = logging.getLogger("voice_serve.server")

BUCKETS_S = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0]


class Metrics:
    """Names are `voice_serve_*`; Ray adds the prefix `ray_`."""

    def __init__(self) -> None:
        self._stage = Histogram(
            "voice_serve_turn_stage_seconds",
            "Seconds of each stage of an answer, from the last speech to the first sound sent",
            boundaries=BUCKETS_S,
            tag_keys=("stage",),
        )
        self._responses = Counter("voice_serve_responses", "Answers by how they ended", tag_keys=("outcome",))
        self._drafts = Counter(
            "voice_serve_drafts", "Answers begun before the end of the turn", tag_keys=("outcome",)
        )
        self._wasted = Counter("voice_serve_draft_tokens_wasted", "Tokens of drafts that were dropped")
        self._transcripts = Counter(
            "voice_serve_transcripts", "Turns of users by what came of them", tag_keys=("session", "outcome")
        )
        self._transcript_s = Histogram(
            "voice_serve_transcript_seconds",
            "Seconds from the last speech of a turn to its end with its words known",
            boundaries=BUCKETS_S,
            tag_keys=("session",),
        )
        self._sessions = Gauge("voice_serve_sessions", "Sessions open on this replica", tag_keys=("session",))
        self._prefills = Counter(
            "voice_serve_prefills", "Prompts read before the question was asked", tag_keys=("outcome",)
        )
        self._resumed = Counter("voice_serve_resumed", "Sessions that went on at another socket")
        self._refused = Counter("voice_serve_refused", "Callers turned away", tag_keys=("reason",))

    def turn(self, done: ResponseDone) -> None:
        self._responses.inc(tags={"outcome": done.outcome})
        if done.latency is None or done.latency.faster_than_realtime:
            return
        for stage, seconds in done.latency.stages().items():
            self._stage.observe(seconds, tags={"stage": stage})

    def draft(self, wasted_tokens: int | None) -> None:
        self._drafts.inc(tags={"outcome": "confirmed" if wasted_tokens is None else "dropped"})
        if wasted_tokens:
            self._wasted.inc(wasted_tokens)

    def transcript(self, kind: SessionKind, heard: TranscriptCompleted | TranscriptFailed) -> None:
        self._transcripts.inc(tags={"session": kind, "outcome": transcript_outcome(heard)})
        if isinstance(heard, TranscriptCompleted) and heard.latency_s is not None:
            self._transcript_s.observe(heard.latency_s, tags={"session": kind})

    def sessions(self, kind: SessionKind, count: int) -> None:
        self._sessions.set(count, tags={"session": kind})

    def prefill(self, outcome: PrefillOutcome) -> None:
        self._prefills.inc(tags={"outcome": outcome})

    def resumed(self) -> None:
        self._resumed.inc()

    def refused(self, reason: str) -> None:
        self._refused.inc(tags={"reason": reason})


REFUSALS_TOLD_EVERY_S = 1.0


class RefusalLog:
    """Callers turned away: each is counted, the log is told at most once a second, of the last ones with the next.

    A line for each was a quarter of what it costs to refuse one, and that is taken from those who are inside.
    """

    def __init__(self, metrics: Metrics | None) -> None:
        self._metrics = metrics
        self._untold: dict[str, int] = {}
        self._told_at = float("-inf")

    def note(self, close_code: int, reason: str) -> None:
        if self._metrics is not None:
            self._metrics.refused(reason)
        self._untold[reason] = self._untold.get(reason, 0) + 1
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= REFUSALS_TOLD_EVERY_S:
            fields = {"code": close_code, "error_code": reason, "since_last_line": self._untold}
            server_log.info("caller refused", extra=fields)
            self._untold, self._told_at = {}, now


class TurnObserver:
    """Tells the log, the metrics and the session log. Without `metrics`, only the logs."""

    def __init__(
        self, metrics: Metrics | None = None, session_log: Callable[[str, str], None] | None = None
    ) -> None:
        self._metrics = metrics
        self._session_log = session_log

    def turn_done(self, session_id: str, done: ResponseDone) -> None:
        if self._metrics is not None:
            self._metrics.turn(done)
        trace_turn(session_id, done, now=asyncio.get_running_loop().time(), unix_ns=time.time_ns())
        log.info("turn", extra=turn_fields(session_id, done))

    def draft_ended(self, session_id: str, *, wasted_tokens: int | None) -> None:
        if self._metrics is not None:
            self._metrics.draft(wasted_tokens)

    def transcribed(
        self, session_id: str, kind: SessionKind, heard: TranscriptCompleted | TranscriptFailed
    ) -> None:
        """A line for each turn that no answer's line will follow."""
        if self._metrics is not None:
            self._metrics.transcript(kind, heard)
        if kind == "transcription":
            log.info("transcript", extra=transcript_fields(session_id, heard))

    def prefill_ended(self, session_id: str, outcome: PrefillOutcome) -> None:
        if self._metrics is not None:
            self._metrics.prefill(outcome)

    def event_handled(self, session_id: str, event: Event | None, now: float) -> None:
        if self._session_log is not None:
            self._session_log(session_id, json.dumps(to_record(event, now)))


def turn_fields(session_id: str, done: ResponseDone) -> dict[str, object]:
    """The fields of a turn's log line; none of them holds what was said."""
    fields: dict[str, object] = {
        "session": session_id,
        "response": done.response_id,
        "outcome": done.outcome,
        "output_tokens": done.usage.output_tokens,
    }
    if done.latency is not None:
        fields |= {f"{stage}_ms": round(s * 1000, 1) for stage, s in done.latency.stages().items()}
        fields["faster_than_realtime"] = done.latency.faster_than_realtime
    if done.heard is not None:
        fields["heard_ms"] = done.heard.audio_ms
    if done.failure is not None:
        fields |= {f"failure_{key}": value for key, value in asdict(done.failure).items()}
    return fields


def transcript_outcome(heard: TranscriptCompleted | TranscriptFailed) -> str:
    if isinstance(heard, TranscriptFailed):
        return "failed"
    return "words" if heard.text else "nothing"


def transcript_fields(session_id: str, heard: TranscriptCompleted | TranscriptFailed) -> dict[str, object]:
    """The fields of a transcript's log line; none of them holds what was said."""
    fields: dict[str, object] = {
        "session": session_id,
        "item": heard.item_id,
        "outcome": transcript_outcome(heard),
    }
    if isinstance(heard, TranscriptFailed):
        return fields | {f"failure_{key}": value for key, value in asdict(heard.failure).items()}
    fields["audio_ms"] = round(heard.audio_s * 1000)
    if heard.latency_s is not None:
        fields["latency_ms"] = round(heard.latency_s * 1000, 1)
    return fields


class SessionLog:
    """Every fact of every session, a file each, from which `voice-serve replay` gives the same commands again.

    It holds what people said: it is written only where the operator has named a folder for it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: dict[str, TextIO] = {}

    def begin(
        self, session_id: str, parameters: Parameters, settings: Settings, lease: Lease | None = None
    ) -> None:
        """Each socket of a resumed session has a file of its own, which begins with what it went on from."""
        socket = f".{lease.generation}" if lease and lease.generation > 1 else ""
        path = self._folder / f"{session_id}{socket}.jsonl"
        self._files[session_id] = path.open("w", encoding="utf-8")
        snapshot = lease.snapshot.conversation if lease and lease.snapshot else None
        epoch = lease.generation - 1 if lease else 0
        self(session_id, json.dumps(start_record(session_id, parameters, settings, epoch, snapshot)))

    def __call__(self, session_id: str, record: str) -> None:
        """A record of a session that has begun."""
        self._files[session_id].write(record + "\n")

    def end(self, session_id: str) -> None:
        self._files.pop(session_id).close()


def process_figures() -> dict[str, int | float]:
    """This process, the tasks on its event loop, and its resident memory now (Linux; elsewhere the highest so far)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        resident = int(statm.read_text().split()[1]) * resource.getpagesize()
    else:
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
    return {
        "pid": os.getpid(),
        "tasks": len(asyncio.all_tasks()),
        "rss_mb": round(resident / 2**20, 1),
    }


def unix_time() -> int:
    """Seconds since 1970, for the wire's `created` fields: the one place where the wall clock is read."""
    return int(time.time())  # noqa: TID251 - this module is where it is allowed
