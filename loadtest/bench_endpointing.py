"""The end of a turn: how long after the last word it is decided, and how often before it, for fixed silences and for
waits that follow the words. On recordings, without a server: the detector, a transcriber and the policy alone.

A recording is one turn: an end decided before its last speech is a cut-off. The transcript of each pause is made of
what had been said by then and counts as known `--stt-ms` after the pause was noticed. Two ears: pocketsphinx, which
gives no punctuation, and an oracle that knows the recording's text and takes as much of it as had been said by then,
in proportion to the voiced time: what a good recogniser would give, to within a word.

    python -m loadtest.bench_endpointing
"""

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from deployments.engines import create, silero_vad
from deployments.interfaces import Transcriber
from deployments.options import SttOptions
from serve_app.audio.framing import FrameAssembler
from serve_app.audio.pcm import Audio, encode_pcm
from serve_app.audio.resampling import StreamingResampler
from serve_app.conversation.endpointing import WAITS, EndpointingPolicy
from serve_app.conversation.turn_taking import INPUT_RATE, TurnDetector, TurnEdge, UserState

from .application import ROOT
from .caller import percentile, recordings

FRAME = 512
THRESHOLD = 0.5
SILENCE_FRAMES = 4 * INPUT_RATE // FRAME
Ears = Callable[["Recording", int], Awaitable[str]]
"""What had been said in a recording up to a sample."""


@dataclass(frozen=True, slots=True)
class Recording:
    name: str
    text: str
    audio: Audio
    """float32 at 16 kHz."""
    probabilities: list[float]
    """Of each frame, with the silence that follows the recording."""

    @property
    def last_speech(self) -> int:
        """The sample after the last frame of speech."""
        return max(i for i, p in enumerate(self.probabilities) if p >= THRESHOLD) * FRAME + FRAME

    def pauses(self, least_frames: int) -> int:
        """Inner pauses of so many frames or more."""
        speech = [i for i, p in enumerate(self.probabilities) if p >= THRESHOLD]
        return sum(b - a - 1 >= least_frames for a, b in pairwise(speech))


@dataclass(frozen=True, slots=True)
class Outcome:
    is_cut_off: bool
    wait_ms: float


def heard(name: str, text: str, audio24: Audio) -> Recording:
    audio = StreamingResampler(24_000, INPUT_RATE).push(audio24)
    detector, frames = silero_vad.load()(), FrameAssembler(FRAME)
    silence = audio[:1].repeat(SILENCE_FRAMES * FRAME) * 0
    scored = [detector.probability(f) for part in (audio, silence) for f in frames.push(part)]
    return Recording(name, text, audio, scored)


async def oracle(recording: Recording, stop: int) -> str:
    """The share of the text that the voiced time up to `stop` is of all."""
    voiced = [p >= THRESHOLD for p in recording.probabilities]
    share = sum(voiced[: stop // FRAME]) / max(1, sum(voiced))
    return recording.text[: _word_end(recording.text, round(share * len(recording.text)))]


def _word_end(text: str, at: int) -> int:
    space = text.find(" ", max(0, at - 1))
    return len(text) if space < 0 else space


def recogniser(engine: Transcriber) -> Ears:
    async def hear(recording: Recording, stop: int) -> str:
        pcm = encode_pcm(recording.audio[:stop])
        return (await engine.transcribe(pcm, language="en", prompt=None)).text

    return hear


async def one_turn(recording: Recording, policy: EndpointingPolicy, ears: Ears, stt_ms: float) -> Outcome:
    detector = TurnDetector(threshold=THRESHOLD, speech_min_ms=64, pause_min_ms=96)
    known: tuple[int, str] | None = None
    """From which position on, and what."""
    for probability in recording.probabilities:
        is_known = known is not None and detector.position >= known[0]
        delay = policy.delay(known[1] if known is not None and is_known else None)
        edge = detector.push(FRAME, probability, delay=delay)
        if edge is TurnEdge.PAUSED:
            words = await ears(recording, detector.position)
            known = (detector.position + int(stt_ms * INPUT_RATE / 1000), words)
        elif edge is TurnEdge.ENDED:
            break
        if detector.state is UserState.SPEAKING:
            known = None
    waited = (detector.position - recording.last_speech) / INPUT_RATE * 1000
    return Outcome(waited < 0, waited)


async def table(clips: list[Recording], ears: dict[str, Ears], stt_ms: float) -> None:
    print(f"{'policy':>26} {'wait p50':>9} {'p90':>6} {'cut off':>9}")
    for silence_ms in (200, 300, 500, 800):
        await _row(f"fixed {silence_ms} ms", EndpointingPolicy(silence_ms), clips, oracle, stt_ms)
    for name, ear in ears.items():
        for eagerness in WAITS:
            await _row(f"{eagerness}, {name}", EndpointingPolicy(0, eagerness), clips, ear, stt_ms)


async def _row(
    name: str, policy: EndpointingPolicy, clips: list[Recording], ears: Ears, stt_ms: float
) -> None:
    outcomes = [await one_turn(clip, policy, ears, stt_ms) for clip in clips]
    waits = [outcome.wait_ms for outcome in outcomes if not outcome.is_cut_off]
    cut = sum(outcome.is_cut_off for outcome in outcomes)
    print(
        f"{name:>26} {percentile(waits, 0.5):9.0f} {percentile(waits, 0.9):6.0f} {cut:4d} of {len(outcomes)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_endpointing", description=__doc__)
    parser.add_argument("--audio", type=Path, default=ROOT.parent / "shared" / "audio")
    parser.add_argument("--stt-ms", type=float, default=100.0)
    args = parser.parse_args()
    texts = {
        f["path"]: f["text"] for f in json.loads((args.audio / "manifest.json").read_text()) if f.get("text")
    }
    clips = [
        heard(name, texts[f"speech/{name}.flac"], audio)
        for name, audio in recordings(args.audio / "speech").items()
    ]
    paused = [clip for clip in clips if clip.pauses(5)]
    print(
        f"{len(clips)} sentences, {len(paused)} with an inner pause of 160 ms or more; stt {args.stt_ms:g} ms"
    )
    pocketsphinx: Transcriber = create(SttOptions(engine="pocketsphinx"))
    ears = {"oracle": oracle, "pocketsphinx": recogniser(pocketsphinx)}
    asyncio.run(table(clips, ears, args.stt_ms))


if __name__ == "__main__":
    main()
