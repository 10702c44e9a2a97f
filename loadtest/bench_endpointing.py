"""The end of a turn: how long after the last word it is decided, and how often before it, for fixed silences and for
waits that follow the words. On recordings, without a server: the detector, a transcriber and the policy alone.

A recording is one turn: an end decided before its last speech is a cut-off. The transcript of each pause is made of
what had been said by then and counts as known `--stt-ms` after the pause was noticed. Two ears: pocketsphinx, which
gives no punctuation, and an oracle that knows the recording's text and takes as much of it as had been said by then,
in proportion to the voiced time: what a good recogniser would give, to within a word.

Rows with "+ sound" ask smart-turn too (`make turn` installs it), whose opinion counts as known `--turn-ms` after the pause.

    python -m loadtest.bench_endpointing
"""

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from deployments.engines import create, silero_vad, smart_turn
from deployments.interfaces import Transcriber, TurnJudge
from deployments.options import SttOptions
from serve_app.audio.framing import FrameAssembler
from serve_app.audio.pcm import Audio, encode_pcm
from serve_app.audio.resampling import StreamingResampler
from serve_app.conversation.endpointing import WAITS, EndpointingPolicy
from serve_app.conversation.turn_taking import INPUT_RATE, TurnDetector, TurnEdge, UserState, samples_of

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
class Listener:
    """What a policy is told at a pause, and how long after it."""

    ears: Ears
    stt_ms: float
    judge: TurnJudge | None = None
    turn_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Known:
    """Something learned of a pause, from a position on."""

    since: int
    words: str
    opinion_since: int
    opinion: float | None


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


async def one_turn(recording: Recording, policy: EndpointingPolicy, listener: Listener) -> Outcome:
    detector = TurnDetector(threshold=THRESHOLD, speech_min_ms=64, pause_min_ms=96)
    known: Known | None = None
    for probability in recording.probabilities:
        words = known.words if known and detector.position >= known.since else None
        opinion = known.opinion if known and detector.position >= known.opinion_since else None
        edge = detector.push(FRAME, probability, delay=policy.delay(words, opinion))
        if edge is TurnEdge.PAUSED:
            known = await _learned(recording, detector.position, listener)
        elif edge is TurnEdge.ENDED:
            break
        if detector.state is UserState.SPEAKING:
            known = None
    waited = (detector.position - recording.last_speech) / INPUT_RATE * 1000
    return Outcome(waited < 0, waited)


async def _learned(recording: Recording, at: int, listener: Listener) -> Known:
    words = await listener.ears(recording, at)
    opinion = await listener.judge.completeness(pcm_until(recording, at)) if listener.judge else None
    return Known(at + samples_of(listener.stt_ms), words, at + samples_of(listener.turn_ms), opinion)


def pcm_until(recording: Recording, stop: int) -> bytes:
    """The recording, and the silence after it, up to a sample."""
    audio = recording.audio[:stop]
    return encode_pcm(audio) + bytes(2 * (stop - len(audio)))


def each_once(ears: Ears) -> Ears:
    """The same ears, which hear every pause once however many policies ask."""
    heard: dict[tuple[str, int], str] = {}

    async def hear(recording: Recording, stop: int) -> str:
        key = recording.name, stop
        if key not in heard:
            heard[key] = await ears(recording, stop)
        return heard[key]

    return hear


async def table(clips: list[Recording], listeners: dict[str, Listener]) -> None:
    print(f"{'policy':>34} {'wait p50':>9} {'p90':>6} {'mean':>6} {'cut off':>9}")
    for silence_ms in (200, 300, 500, 800):
        await _row(f"fixed {silence_ms} ms", EndpointingPolicy(silence_ms), clips, Listener(oracle, 0.0))
    for name, listener in listeners.items():
        for eagerness in WAITS:
            await _row(f"{eagerness}, {name}", EndpointingPolicy(0, eagerness), clips, listener)


async def _row(name: str, policy: EndpointingPolicy, clips: list[Recording], listener: Listener) -> None:
    outcomes = [await one_turn(clip, policy, listener) for clip in clips]
    waits = [outcome.wait_ms for outcome in outcomes if not outcome.is_cut_off]
    cut = sum(outcome.is_cut_off for outcome in outcomes)
    mean = sum(waits) / max(1, len(waits))
    figures = f"{percentile(waits, 0.5):9.0f} {percentile(waits, 0.9):6.0f} {mean:6.0f}"
    print(f"{name:>34} {figures} {cut:4d} of {len(outcomes)}", flush=True)


async def opinions(clips: list[Recording], judge: TurnJudge) -> None:
    """How often the sound alone is right: at the ends, and at the inner pauses."""
    at_ends: list[bool] = []
    within: list[bool] = []
    for clip in clips:
        detector = TurnDetector(threshold=THRESHOLD, speech_min_ms=64, pause_min_ms=96)
        for probability in clip.probabilities:
            edge = detector.push(FRAME, probability, delay=len(clip.probabilities) * FRAME)
            if edge is TurnEdge.PAUSED:
                is_end = detector.position > clip.last_speech
                opinion = await judge.completeness(pcm_until(clip, detector.position))
                (at_ends if is_end else within).append(opinion > 0.5)
    print(
        f"smart-turn alone: {sum(at_ends)} of {len(at_ends)} ends taken for such, "
        f"and {sum(within)} of {len(within)} inner pauses"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_endpointing", description=__doc__)
    parser.add_argument("--audio", type=Path, default=ROOT.parent / "shared" / "audio")
    parser.add_argument("--stt-ms", type=float, default=100.0)
    parser.add_argument("--turn-ms", type=float, default=40.0)
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
    ears = {"oracle": oracle, "pocketsphinx": each_once(recogniser(pocketsphinx))}
    judge = smart_turn.load() if smart_turn.model_path() else None
    asyncio.run(_report(clips, ears, judge, args.stt_ms, args.turn_ms))


async def _report(
    clips: list[Recording], ears: dict[str, Ears], judge: TurnJudge | None, stt_ms: float, turn_ms: float
) -> None:
    listeners = {name: Listener(ear, stt_ms) for name, ear in ears.items()}
    if judge is None:
        print(f"no rows with smart-turn: its model is not here ({smart_turn.REMEDY})")
    else:
        await opinions(clips, judge)
        listeners |= {f"{name} + sound": Listener(ear, stt_ms, judge, turn_ms) for name, ear in ears.items()}
    await table(clips, listeners)


if __name__ == "__main__":
    main()
