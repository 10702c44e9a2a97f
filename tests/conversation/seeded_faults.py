"""Mistakes that a maintainer might make, each of which some test must catch.

`python -m tests.conversation.seeded_faults` puts each fault into a copy of the core, runs the tests of this folder against
the copy, and prints `fault -> caught by test`. It fails if a fault is not caught, or if its place in the code is gone.
Names given as arguments choose faults.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE = Path("serve_app/conversation")
TESTS = Path("tests/conversation")


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    file: str
    old: str
    new: str


FAULTS = [
    Fault(
        "news of an old answer are taken for the new one's",
        "answering.py",
        "if answer is not None and answer.response_id == response_id:",
        "if answer is not None:",
    ),
    Fault(
        "news of an old transcription are taken for the new one's",
        "hearing.py",
        "if self._in_flight is None or self._in_flight.transcription_id != transcription_id:",
        "if self._in_flight is None:",
    ),
    Fault(
        "audio is sent as fast as it comes",
        "playout.py",
        "return self._drain_at - self._lead_s",
        'return float("-inf")',
    ),
    Fault(
        "two chunks on their way at once",
        "playout.py",
        "if self._in_flight is not None or not self._unsent:",
        "if not self._unsent:",
    ),
    Fault(
        "the agent is silent once all is sent",
        "playout.py",
        "return now < self._drain_at or self._in_flight is not None or bool(self._unsent)",
        "return self._in_flight is not None or bool(self._unsent)",
    ),
    Fault(
        "a barge-in in the tail cuts nothing",
        "truncation.py",
        "        for cut, heard in self._playout.cut(now):\n",
        "        for cut, heard in self._playout.cut(now) if under_way is not None else []:\n",
    ),
    Fault(
        "an interrupted answer keeps all that was sent",
        "playout.py",
        "                utterance.cut_s = played\n",
        "                utterance.cut_s = utterance.sent_s\n",
    ),
    Fault(
        "an answer cancelled by a cough is lost",
        "conversation.py",
        '            self._is_owed |= vad.create_response and self.history.last_role() in ("user", "tool")\n',
        "            pass\n",
    ),
    Fault(
        "an answer is given while the user has the floor",
        "conversation.py",
        "return self._requested is not None or not self._hearing.has_turn",
        "return True",
    ),
    Fault(
        "an answer is begun before the words are known",
        "conversation.py",
        "if self._answering.is_active or self._hearing.is_awaiting_words:",
        "if self._answering.is_active:",
    ),
    Fault(
        "an answer stays owed after it was begun",
        "conversation.py",
        "self._is_owed, self._requested = False, None\n        timeline",
        "self._requested = None\n        timeline",
    ),
    Fault(
        "resumed speech keeps the early transcript",
        "hearing.py",
        "turn.transcript, turn.has_failed = None, False",
        "turn.has_failed = False",
    ),
    Fault(
        "resumed speech keeps the early transcription",
        "hearing.py",
        "            case TurnEdge.RESUMED:\n                self._drop_draft_transcript()\n",
        "            case TurnEdge.RESUMED:\n                pass\n",
    ),
    Fault(
        "coughs add up",
        "hearing.py",
        "                    self._detector.reset()\n                self._ask_for_an_opinion()",
        "                    pass\n                self._ask_for_an_opinion()",
    ),
    Fault(
        "a truncation is not clamped",
        "truncation.py",
        "end_ms = min(end_ms, sent_ms)",
        "end_ms = max(end_ms, 0)",
    ),
    Fault(
        "the server's estimate overrules the client's truncation",
        "answering.py",
        "if utterance.cut_s is None:  # else the client has said where it stopped",
        "if True:",
    ),
    Fault(
        "retries without end",
        "answering.py",
        "if answer.has_failed or answer.shown or not failure.retryable:",
        "if answer.shown or not failure.retryable:",
    ),
    Fault(
        "an answer is begun anew after its first words",
        "answering.py",
        "if answer.has_failed or answer.shown or not failure.retryable:",
        "if answer.has_failed or not failure.retryable:",
    ),
    Fault(
        "words are shown before their sound",
        "answering.py",
        "        answer.utterance.add_segment(segment_id, text)\n",
        "        answer.utterance.add_segment(segment_id, text)\n        self._show(answer, text)\n",
    ),
    Fault(
        "no hysteresis",
        "turn_taking.py",
        "HYSTERESIS = 0.15",
        "HYSTERESIS = 0.0",
    ),
    Fault(
        "turns without end",
        "hearing.py",
        "if self._turn is not None and self._detector.position - self._turn.start >= self._max_turn:",
        "if False:",
    ),
    Fault(
        "a turn takes sound from the turn before",
        "hearing.py",
        "start = max(padded, self._committed_to, 0)",
        "start = max(padded, 0)",
    ),
    Fault(
        "a stalled microphone is waited for",
        "conversation.py",
        "if stall is not None and now >= stall:",
        "if False:",
    ),
    Fault(
        "interrupt_response is not honoured",
        "conversation.py",
        "if vad is not None and vad.interrupt_response and self._answering.interrupt(now):",
        "if vad is not None and self._answering.interrupt(now):",
    ),
    Fault(
        "the segments depend on the tokens",
        "segmentation.py",
        "seen = self._text[: longest + 1]",
        "seen = self._text",
    ),
    Fault(
        "an answer is done before its last chunk is sent",
        "playout.py",
        "return self._in_flight is None and not any(",
        "return not any(",
    ),
    Fault(
        "a draft is confirmed whatever it answers",
        "answering.py",
        "if draft is not None and draft.order == order:",
        "if draft is not None:",
    ),
    Fault(
        "a draft outlives its pause",
        "conversation.py",
        "        if turn is None:\n            self._answering.drop_draft()\n",
        "        if turn is None:\n            pass\n",
    ),
    Fault(
        "drafts without end",
        "conversation.py",
        "turn.drafts < self._drafts_per_turn and",
        "self._drafts_per_turn and",
    ),
    Fault(
        "a draft that is dropped goes on",
        "answering.py",
        "            self._emit(CancelWork(draft.response_id, wasted_tokens=draft.usage.output_tokens))\n",
        "            pass\n",
    ),
    Fault(
        "the whole of a draft is synthesised",
        "answering.py",
        "if self._draft is not None and not self._draft.utterance.segments:",
        "if self._draft is not None:",
    ),
    Fault(
        "a draft is begun beside a response",
        "conversation.py",
        "is_busy = self._answering.is_active or self._hearing",
        "is_busy = self._hearing",
    ),
    Fault(
        "words are shown that only one transcription heard",
        "hearing.py",
        "            self._show_agreed(turn, text.split())\n",
        "            turn.interim = text.split()\n            self._show_agreed(turn, text.split())\n",
    ),
    Fault(
        "an interim keeps a final waiting",
        "hearing.py",
        "        if self._waiting or self._wants_draft_transcript():\n            self._cancel_interim()\n",
        "",
    ),
    Fault(
        "an interim is taken for the final",
        "hearing.py",
        "        if flight.is_interim:\n            self._space_interims(now - flight.began_at)",
        "        if False:\n            self._space_interims(now - flight.began_at)",
    ),
    Fault(
        "an opinion outlives its pause",
        "hearing.py",
        "        turn.judgement_id = turn.opinion = None\n",
        "",
    ),
    Fault(
        "an opinion on an older pause counts",
        "hearing.py",
        "if turn is not None and turn.judgement_id == judgement_id:",
        "if turn is not None:",
    ),
]


def main(names: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    escaped = []
    for fault in chosen:
        caught_by = _caught_by(fault)
        print(f"{fault.name} -> {f'caught by {caught_by}' if caught_by else 'NOT CAUGHT'}", flush=True)
        escaped += [] if caught_by else [fault.name]
    print(f"{len(chosen) - len(escaped)} of {len(chosen)} caught")
    return 1 if escaped or not chosen else 0


def _caught_by(fault: Fault) -> str:
    """The first test that fails on a copy with the fault; empty if none does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
        shutil.copytree(ROOT / CORE, copy / CORE, ignore=ignored)
        shutil.copytree(ROOT / TESTS, copy / TESTS, ignore=ignored)
        shutil.copy(ROOT / "serve_app/__init__.py", copy / "serve_app/__init__.py")
        _put_in(fault, copy / CORE / fault.file)
        run = _run_tests(copy)
        if run.returncode not in (0, 1):
            raise SystemExit(f"the tests did not run with {fault.name!r}:\n{run.stdout}{run.stderr}")
    failed = re.search(r"^FAILED \S+::(\S+)", run.stdout, re.MULTILINE)
    return failed[1] if failed else ""


def _put_in(fault: Fault, path: Path) -> None:
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(
            f"{fault.file} has {text.count(fault.old)} places for {fault.name!r}; mend the fault"
        )
    path.write_text(text.replace(fault.old, fault.new))


def _run_tests(copy: Path) -> subprocess.CompletedProcess[str]:
    """In the copy alone: its own configuration, its own package."""
    (copy / "pytest.ini").write_text("[pytest]\n")
    paths = {"PYTHONPATH": f"{copy}:{copy / TESTS.parent}"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:asyncio",
        "-p",
        "no:cacheprovider",
        str(TESTS),
    ]
    return subprocess.run(command, cwd=copy, env=paths, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
