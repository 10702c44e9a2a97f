"""Interim transcripts: what a caller sees of recordings while they are still being said, and when.

Each recording is said as a live microphone into a session of its own that asks for no answer. Times are the caller's:
since the speech began, by the sound of the recording (`onset_s`), and since `speech_started` of the same turn came.
"""

import argparse
import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serve_app.audio.pcm import Audio
from serve_app.client.connection import Arrival
from serve_app.talk import load_recording

from .application import application
from .caller import caller, onset_s
from .command import SHARED, Commands, add_command

STARTED = "input_audio_buffer.speech_started"
STOPPED = "input_audio_buffer.speech_stopped"
DELTA, COMPLETED, FAILED = (
    f"conversation.item.input_audio_transcription.{what}" for what in ("delta", "completed", "failed")
)
RATE = 24_000


def add_parser(commands: Commands) -> None:
    what = "interim transcripts of recordings as they are said, with their times"
    command = add_command(commands, "interims", run, what)
    command.add_argument(
        "--recording",
        type=Path,
        nargs="+",
        default=[Path("digits/jackson-19.flac")],
        metavar="FILE",
        help="absolute, or below --audio (default: digits/jackson-19.flac)",
    )
    command.add_argument(
        "--engine",
        default=str(SHARED / "models" / "whisper-digits-int8"),
        help="pocketsphinx, or a Whisper by its name or folder (default: %(default)s)",
    )
    command.add_argument(
        "--interim-ms", type=int, default=300, help="a transcript so often, at most (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    clips = {path: load_recording(args.audio / path) for path in args.recording}
    texts = said(args.audio)
    changes = {
        "stt": stt_of(args.engine),
        "turn_taking": {"interim_ms": args.interim_ms, "drafts_per_turn": 0},
    }
    print(f"{Path(args.engine).name}, an interim each {args.interim_ms} ms at most, proxy {args.proxy}")
    with application(args=changes, proxy=args.proxy) as app:
        for path, audio in clips.items():
            arrivals, began_at = asyncio.run(one_recording(app.realtime, audio))
            text = f", in which is said: {texts[str(path)]}" if str(path) in texts else ""
            print(f"\n{path}, {len(audio) / RATE:.2f} s{text}")
            print("\n".join(lines(arrivals, began_at)), flush=True)


def stt_of(engine: str) -> dict[str, Any]:
    if engine == "pocketsphinx":
        return {"engine": engine}
    folder = Path(engine)
    return {
        "engine": "faster_whisper",
        "model": str(folder.resolve()) if folder.is_dir() else engine,
        "language": "en",
    }


def said(folder: Path) -> dict[str, str]:
    """The text of each recording below `folder`, where its manifest.json knows it."""
    manifest = folder / "manifest.json"
    files: list[dict[str, Any]] = json.loads(manifest.read_text()) if manifest.is_file() else []
    return {file["path"]: file["text"] for file in files if file.get("text")}


async def one_recording(url: str, audio: Audio) -> tuple[list[Arrival], float]:
    """What came until all was transcribed, and when the speech began. Raises TimeoutError where none is heard."""
    vad = {"type": "server_vad", "create_response": False}
    async with caller(url, audio={"input": {"turn_detection": vad}}) as one:
        spoken = one.say(audio)
        await one.until_said(spoken)
        await one.until(lambda arrival: arrival.type in (COMPLETED, FAILED) and not open_items(one.arrivals))
        assert spoken.began_at is not None
        return one.arrivals, spoken.began_at + onset_s(audio)


def open_items(arrivals: Sequence[Arrival]) -> set[str]:
    """Turns that have begun and are not transcribed yet."""
    begun = {arrival.event["item_id"] for arrival in arrivals if arrival.type == STARTED}
    return begun - {arrival.event["item_id"] for arrival in arrivals if arrival.type in (COMPLETED, FAILED)}


def lines(arrivals: Sequence[Arrival], began_at: float) -> Iterator[str]:
    """A row for each event of the user's turns; `began_at`: when the speech of the recording began."""
    yield f"{'s since speech began':>20} {'speech_started':>15}"
    started_at = {a.event["item_id"]: a.at for a in arrivals if a.type == STARTED}
    for arrival in arrivals:
        if arrival.type not in (STARTED, DELTA, STOPPED, COMPLETED, FAILED):
            continue
        since_started_s = arrival.at - started_at[arrival.event["item_id"]]
        words = arrival.event.get("delta") or arrival.event.get("transcript") or ""
        name = arrival.type.rpartition(".")[2]
        yield f"{arrival.at - began_at:20.2f} {since_started_s:15.2f}  {name:<14} {words}".rstrip()
