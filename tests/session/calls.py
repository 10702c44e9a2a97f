"""A caller as a script: a live microphone, a player at 1x and a record of all that came, around one `Session`.

    call = await converse([user_says(at=0.48, for_s=0.96)], until=6.0)
    assert call.outcomes() == ["completed"]

or, where the client reacts to what it gets:

    async with calling() as call:
        call.says(at=0.48, for_s=0.96)
        await call.until("response.done")
        call.send({"type": "response.cancel"})

Times in scripts and records are seconds since the call began. However a call ends, leaving it checks the order of
its events, the types of the `openai` SDK for each, and that no task and no engine call is left.
"""

import asyncio
import base64
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from realtime.order import OWN_EVENTS, OrderChecker

from deployments.engines.scripted import ScriptedChatModel, ScriptedSynthesizer, ScriptedTranscriber
from deployments.engines.scripted_code import decode_words
from deployments.interfaces import SpeechDetector
from deployments.options import (
    LlmOptions,
    ScriptedLlm,
    ScriptedStt,
    ScriptedTts,
    SttOptions,
    TtsOptions,
)
from serve_app.audio.pcm import (
    decode_a_law,
    decode_mu_law,
    decode_pcm,
    encode_a_law,
    encode_mu_law,
    encode_pcm,
)
from serve_app.conversation.commands import ResponseDone
from serve_app.conversation.events import Event, Settings
from serve_app.realtime.session_config import AudioFormat, SessionConfig
from serve_app.session.ears import Ears
from serve_app.session.options import SessionOptions
from serve_app.session.session import Session
from serve_app.session.stages import Engines, PrefillOutcome
from serve_app.session.transport import ConnectionLost, Ending

from .virtual import the_loop

Audio = npt.NDArray[np.float32]
Json = dict[str, Any]

APPEND_S = 0.02
HANG_UP_S = 0.5
"""A session whose peer is gone is over within this."""
ENCODERS = {AudioFormat.PCM: encode_pcm, AudioFormat.PCMU: encode_mu_law, AudioFormat.PCMA: encode_a_law}
DECODERS = {AudioFormat.PCM: decode_pcm, AudioFormat.PCMU: decode_mu_law, AudioFormat.PCMA: decode_a_law}
_SDK: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)


# --- the user -------------------------------------------------------------------------------------------------------


class ToneDetector:
    """Takes anything loud for speech, so that a tone is."""

    def probability(self, frame: Audio) -> float:
        return 0.95 if float(np.sqrt(np.mean(frame * frame))) > 0.05 else 0.02

    @staticmethod
    def probabilities(detectors: Sequence["ToneDetector"], frames: Audio) -> list[float]:
        return [one.probability(frame) for one, frame in zip(detectors, frames, strict=True)]


@dataclass(frozen=True)
class Says:
    at: float
    for_s: float


@dataclass(frozen=True)
class Sends:
    at: float
    event: Json


def user_says(*, at: float, for_s: float) -> Says:
    return Says(at, for_s)


def client_sends(event_type: str, *, at: float, **fields: Any) -> Sends:
    return Sends(at, {"type": event_type, **fields})


def tone(start: int, samples: int, rate: int) -> Audio:
    """A piece of one endless tone, from its sample `start` on."""
    wave = 0.4 * np.sin(2 * np.pi * 300 * np.arange(start, start + samples) / rate)
    return wave.astype(np.float32)


def append(audio: Audio, audio_format: AudioFormat = AudioFormat.PCM, **fields: Any) -> Json:
    encoded = base64.b64encode(ENCODERS[audio_format](audio)).decode()
    return {"type": "input_audio_buffer.append", "audio": encoded, **fields}


# --- the listener ---------------------------------------------------------------------------------------------------


@dataclass
class Sound:
    item_id: str
    start_s: float
    audio: Audio
    rate: int

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.audio) / self.rate


class Player:
    """Plays what it gets at once, in order, at 1x; stops when told to and throws the rest away."""

    def __init__(self) -> None:
        self.sounds: list[Sound] = []
        self.ahead: list[float] = []
        """Seconds of unplayed sound just after each chunk."""
        self._drain_s = 0.0

    def play(self, item_id: str, audio: Audio, rate: int, now: float) -> None:
        sound = Sound(item_id, max(now, self._drain_s), audio, rate)
        self._drain_s = sound.end_s
        self.sounds.append(sound)
        self.ahead.append(self._drain_s - now)

    def stop(self, now: float) -> None:
        self._drain_s = min(self._drain_s, now)
        kept = [sound for sound in self.sounds if sound.start_s < now]
        self.sounds = [
            replace(sound, audio=sound.audio[: max(0, round((now - sound.start_s) * sound.rate))])
            for sound in kept
        ]

    def played_s(self, item_id: str) -> float:
        return sum(len(sound.audio) / sound.rate for sound in self.sounds if sound.item_id == item_id)

    def words(self, item_id: str, *, word_s: float) -> list[tuple[int, float, float]]:
        """(number, start, end) of what was played of each word, read from the sound itself."""
        sounds = [sound for sound in self.sounds if sound.item_id == item_id]
        if not sounds:
            return []
        return decode_words(np.concatenate([sound.audio for sound in sounds]), sounds[0].rate, word_s)

    def whole_words(self, item_id: str, *, word_s: float) -> list[int]:
        found = self.words(item_id, word_s=word_s)
        return [number for number, start, end in found if end - start > word_s - 0.01]


# --- the socket -----------------------------------------------------------------------------------------------------


@dataclass
class Faults:
    """What goes wrong with the socket; the k-th frame is number k, from 0."""

    block_at_send: int | None = None
    """From this frame on nobody reads."""
    lose_at_send: int | None = None
    lose_at_receive: int | None = None
    send_s: float = 0.0


MOST_AT_ONCE = 50


class MemoryTransport:
    is_direct = True
    """Whether text is delivered as by `direct_socket`, or all is received as by ASGI."""

    def __init__(self, faults: Faults, deliver: Callable[[str], None]) -> None:
        self.faults = faults
        self.closed: tuple[int, str] | None = None
        self.is_lost = False
        self.has_left = False
        """The peer is gone and its system tells nobody: sends hang."""
        self.is_paused = False
        self._deliver = deliver
        self._incoming: deque[str | bytes | None] = deque()
        """What the peer has sent and nobody has read; None: it has hung up."""
        self._news = asyncio.Event()
        self._on_text: Callable[[str], None] | None = None
        self._sent = self._received = 0

    def put(self, frame: str | bytes | None) -> None:
        self._incoming.append(frame)
        self._deliver_text()

    def deliver_to(self, on_text: Callable[[str], None]) -> None:
        if self.is_direct:
            self._on_text = on_text
            self._deliver_text()

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            asyncio.get_running_loop().call_soon(self._deliver_text)

    def _deliver_text(self) -> None:
        while self._on_text is not None and self._text_is_next and not self.is_paused:
            self._received += 1
            self._on_text(str(self._incoming.popleft()))
        self._news.set()

    @property
    def _text_is_next(self) -> bool:
        return bool(self._incoming) and isinstance(self._incoming[0], str) and not self._loses_next

    @property
    def _loses_next(self) -> bool:
        return self._received == self.faults.lose_at_receive

    def hang_up(self) -> None:
        self.is_lost = True
        self.put(None)

    async def receive(self) -> str | bytes:
        while not self._incoming or (self._on_text is not None and self._text_is_next):
            self._news.clear()
            await self._news.wait()
        frame, is_lost = self._incoming.popleft(), self._loses_next
        self._received += 1
        if frame is None or is_lost:
            raise ConnectionLost
        return frame

    @property
    def is_writable(self) -> bool:
        """Faults of frames to come make it unwritable well before them."""
        faults = self.faults
        points = [point for point in (faults.block_at_send, faults.lose_at_send) if point is not None]
        must_wait = self.has_left or self.is_lost or faults.send_s > 0
        is_near = self._sent + MOST_AT_ONCE > min(points, default=sys.maxsize)
        return self.is_direct and self.closed is None and not must_wait and not is_near

    def send_at_once(self, texts: Sequence[str]) -> None:
        assert len(texts) <= MOST_AT_ONCE
        assert self.is_writable
        self._sent += len(texts)
        for text in texts:
            self._deliver(text)

    async def send(self, text: str) -> None:
        assert self.closed is None, "nothing is sent after the close"
        number, self._sent = self._sent, self._sent + 1
        if self.has_left or (self.faults.block_at_send is not None and number >= self.faults.block_at_send):
            await asyncio.get_running_loop().create_future()
        if self.faults.send_s:
            await asyncio.sleep(self.faults.send_s)
        if self.is_lost or number == self.faults.lose_at_send:
            raise ConnectionLost
        self._deliver(text)

    async def close(self, code: int, reason: str) -> None:
        assert self.closed is None, "closed twice"
        self.closed = (code, reason)


class Recorder:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.done: list[ResponseDone] = []
        self.facts: list[tuple[Event | None, float]] = []
        self.drafts: list[int | None] = []
        self.transcripts: list[tuple[str, Any]] = []
        self.prefills: list[PrefillOutcome] = []

    def turn_done(self, session_id: str, done: ResponseDone) -> None:
        self.done.append(done)

    def transcribed(self, session_id: str, kind: str, heard: Any) -> None:
        self.transcripts.append((kind, heard))

    def draft_ended(self, session_id: str, *, wasted_tokens: int | None) -> None:
        self.drafts.append(wasted_tokens)

    def prefill_ended(self, session_id: str, outcome: PrefillOutcome) -> None:
        self.prefills.append(outcome)

    def event_handled(self, session_id: str, event: Event | None, now: float) -> None:
        self.facts.append((event, now))


# --- the engines ----------------------------------------------------------------------------------------------------

FAST_LLM = ScriptedLlm(first_token_s=0.1, tokens_per_s=30.0, answer_words=24)
"""The first clause has three words and is known with the fourth: 100 ms after the first."""
FAST_TTS = ScriptedTts(first_audio_s=0.1, word_s=0.2)


def scripted(
    stt: ScriptedStt | None = None,
    llm: ScriptedLlm | None = None,
    tts: ScriptedTts | None = None,
    **others: Any,
) -> Engines:
    """Scripted engines of 100 ms a stage; `others`: an engine in a stage's place."""
    engines = Engines(
        make_detector=ToneDetector,
        transcriber=ScriptedTranscriber(SttOptions(engine="scripted", scripted=stt or ScriptedStt())),
        chat=ScriptedChatModel(LlmOptions(engine="scripted", scripted=llm or FAST_LLM)),
        synthesizer=ScriptedSynthesizer(TtsOptions(engine="scripted", scripted=tts or FAST_TTS)),
        ears=Ears(gather_s=0.0),
    )
    return replace(engines, **others)


def active_calls(engines: Engines) -> int:
    stages: tuple[Any, ...] = (engines.transcriber, engines.chat, engines.synthesizer)
    return sum(stage.active for stage in stages)


# --- the call -------------------------------------------------------------------------------------------------------


@dataclass
class Call:
    session: Session
    engines: Engines
    transport: MemoryTransport
    recorder: Recorder
    began: float
    player: Player = field(default_factory=Player)
    events: list[tuple[float, Json]] = field(default_factory=list)
    ending: Ending | None = None
    ended_at: float | None = None
    input_format: AudioFormat = AudioFormat.PCM
    output_format: AudioFormat = AudioFormat.PCM
    stops_at_speech: bool = True
    on_event: Callable[[Json], None] = lambda event: None
    mic_on: bool = True
    append_s: float = APPEND_S
    last_speech_sent_at: float | None = None
    """When the append with the last sample of speech was sent."""
    _says: list[Says] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    # --- what the client does ---

    @property
    def now(self) -> float:
        return the_loop().time() - self.began

    def says(self, *, at: float | None = None, for_s: float) -> None:
        self._says.append(Says(self.now if at is None else at, for_s))

    def send(self, event: Json | str | bytes) -> None:
        self.transport.put(json.dumps(event) if isinstance(event, dict) else event)

    def configure(self, **session: Any) -> None:
        self.send({"type": "session.update", "session": {"type": "realtime", **session}})

    async def microphone(self) -> None:
        """What a live microphone gives, silence included, `append_s` at a time."""
        position = 0
        while True:
            rate = self.input_format.rate
            samples = round(self.append_s * rate)
            position += samples
            await self.sleep_until(position / rate)
            if not self.mic_on:
                continue
            start = position - samples
            audio = np.zeros(samples, dtype=np.float32)
            for say in self._says:
                first, last = round(say.at * rate), round((say.at + say.for_s) * rate)
                first, last = max(first, start), min(last, position)
                if first < last:
                    audio[first - start : last - start] = tone(first, last - first, rate)
                    self.last_speech_sent_at = self.now
            self.send(append(audio, self.input_format))

    async def sleep_until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, self.began + at - the_loop().time()))

    async def until(self, kind: str | Callable[[], Any], *, count: int = 1, within: float = 30.0) -> Json:
        """The `count`-th event of this type; or, for a condition, the last event when it came to hold."""
        async with asyncio.timeout(within):
            while True:
                if callable(kind):
                    if kind():
                        return self.events[-1][1]
                elif len(found := self.all(kind)) >= count:
                    return found[count - 1]
                self._news.clear()
                await self._news.wait()

    # --- what it gets ---

    def deliver(self, text: str) -> None:
        event = json.loads(text)
        self.events.append((self.now, event))
        match event["type"]:
            case "response.output_audio.delta":
                audio = DECODERS[self.output_format](base64.b64decode(event["delta"]))
                self.player.play(event["item_id"], audio, self.output_format.rate, self.now)
            case "input_audio_buffer.speech_started" if self.stops_at_speech:
                self.player.stop(self.now)
            case _:
                pass
        self.on_event(event)
        self._news.set()

    def all(self, kind: str) -> list[Json]:
        return [event for _, event in self.events if event["type"] == kind]

    def times(self, kind: str) -> list[float]:
        return [at for at, event in self.events if event["type"] == kind]

    def kinds(self) -> list[str]:
        return [event["type"] for _, event in self.events]

    def only(self, kind: str) -> Json:
        (event,) = self.all(kind)
        return event

    def responses(self) -> list[Json]:
        return [event["response"] for event in self.all("response.done")]

    def outcomes(self) -> list[str]:
        return [response["status"] for response in self.responses()]

    def errors(self) -> list[Json]:
        return [event["error"] for event in self.all("error")]

    def latency(self, number: int = 0) -> dict[str, float]:
        """Stage -> ms, as `response.done` says."""
        metadata = self.responses()[number]["metadata"]
        prefix, suffix = "latency.", "_ms"
        return {
            key.removeprefix(prefix).removesuffix(suffix): float(value)
            for key, value in metadata.items()
            if key.startswith(prefix) and key.endswith(suffix)
        }

    def history(self) -> list[tuple[str, str]]:
        items = self.session._conversation.history.items()
        return [(item.role, item.text) for item in items]

    # --- the judge ---

    def check(self) -> None:
        """Order and types of everything that was sent."""
        order = OrderChecker()
        for _, event in self.events:
            order.push(event)
            if event["type"] not in OWN_EVENTS:
                _SDK.validate_python(event)


@asynccontextmanager
async def calling(
    *,
    engines: Engines | None = None,
    options: SessionOptions | None = None,
    settings: Settings | None = None,
    faults: Faults | None = None,
    microphone: bool = True,
    append_s: float = APPEND_S,
    make_detector: Callable[[], SpeechDetector] | None = None,
    **session_arguments: Any,
) -> AsyncIterator[Call]:
    """A call from its first frame to its end; leaving the block hangs up, unless it is over by then.

    `session_arguments`: of `Session`, to resume one.
    """
    engines = engines or scripted()
    if make_detector is not None:
        engines = replace(engines, make_detector=make_detector)
    transport = MemoryTransport(faults or Faults(), lambda text: call.deliver(text))
    recorder = Recorder()
    config = SessionConfig(
        settings=settings or Settings(instructions="Be brief.", voice="any"), model="voice"
    )
    session = Session(
        "test", transport, engines, config, options or SessionOptions(), recorder, **session_arguments
    )
    call = Call(session, engines, transport, recorder, began=the_loop().time(), append_s=append_s)
    running = asyncio.create_task(_run(call), name="session")
    mic = asyncio.create_task(call.microphone()) if microphone else None
    try:
        yield call
    finally:
        if mic is not None:
            mic.cancel()
        transport.hang_up()
        await asyncio.wait([running], timeout=HANG_UP_S)
        is_over = running.done()
        running.cancel()
    assert is_over, "the session went on without its peer"
    running.result()
    assert active_calls(engines) == 0, "engine calls outlived the session"
    call.check()


async def _run(call: Call) -> None:
    call.ending = await call.session.run()
    call.ended_at = call.now
    call._news.set()


async def converse(script: Iterable[Says | Sends], *, until: float, **options: Any) -> Call:
    """The whole script, and on until `until` seconds."""
    async with calling(**options) as call:
        sends = []
        for act in script:
            if isinstance(act, Says):
                call.says(at=act.at, for_s=act.for_s)
            else:
                sends.append(act)
        for act in sorted(sends, key=lambda act: act.at):
            await call.sleep_until(act.at)
            call.send(act.event)
        await call.sleep_until(until)
    return call
