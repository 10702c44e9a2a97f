"""`voice-serve talk` without a recording: the machine's own microphone and loudspeaker, by PortAudio.

There is no echo cancellation here, unlike in a browser: without headphones the agent hears itself and stops.
"""

import asyncio
import threading
from collections import deque
from typing import Any

import numpy as np
from rich.console import Console

from .audio.pcm import Audio, Samples, decode_pcm, pcm_samples
from .audio.resampling import StreamingResampler
from .client.connection import RATE, ClientError, RealtimeClient, session_end_alone
from .client.microphone import FRAME_S
from .client.player import Played
from .client.resuming import resuming_client

NO_DEVICE = (
    "This machine offers no {what} ({why}). "
    "Use a recording instead: voice-serve talk --file question.wav, or the page in a browser."
)


class NoDevice(ClientError):
    """No microphone or no loudspeaker here; the message says what to do."""


class Loudspeaker:
    """What is to be played, handed to the device's thread block by block; it knows how much of the item was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[tuple[str, Samples | None]] = deque()
        """None: the item ends here."""
        self._item_id: str | None = None
        self._played = 0

    def push(self, item_id: str, samples: Samples) -> None:
        with self._lock:
            self._queue.append((item_id, samples))

    def finish(self, item_id: str) -> None:
        with self._lock:
            self._queue.append((item_id, None))

    def flush(self) -> Played | None:
        """Stop, and what was stopped; None if nothing was open."""
        with self._lock:
            self._end_items()
            item_id = self._item_id or (self._queue[0][0] if self._queue else None)
            played_s = self._played / RATE
            self._queue.clear()
            self._item_id, self._played = None, 0
        return None if item_id is None else Played(item_id, played_s)

    def take(self, count: int) -> Samples:
        """The next `count` samples for the device, silence where there are none."""
        block = np.zeros(count, dtype=np.int16)
        filled = 0
        with self._lock:
            while filled < count and self._has_samples():
                item_id, samples = self._queue.popleft()
                assert samples is not None
                if item_id != self._item_id:
                    self._item_id, self._played = item_id, 0
                part = samples[: count - filled]
                block[filled : filled + len(part)] = part
                filled += len(part)
                self._played += len(part)
                if len(part) < len(samples):
                    self._queue.appendleft((item_id, samples[len(part) :]))
        return block

    def _has_samples(self) -> bool:
        self._end_items()
        return bool(self._queue)

    def _end_items(self) -> None:
        while self._queue and self._queue[0][1] is None:
            item_id, _ = self._queue.popleft()
            if item_id == self._item_id:
                self._item_id, self._played = None, 0


async def converse(url: str, api_key: str | None) -> None:
    """Talk until Ctrl-C. Raises NoDevice, NotConnected, SessionEnded."""
    devices = _portaudio()
    loudspeaker = Loudspeaker()
    frames: asyncio.Queue[Audio] = asyncio.Queue(maxsize=50)
    loop = asyncio.get_running_loop()

    def heard(data: Any, _frames: int, _time: Any, _status: Any) -> None:
        loop.call_soon_threadsafe(_put, frames, decode_pcm(bytes(data)))

    def play(data: Any, count: int, _time: Any, _status: Any) -> None:
        data[:] = loudspeaker.take(count).tobytes()

    try:
        rate = _input_rate(devices)
        microphone = devices.RawInputStream(
            rate, int(rate * FRAME_S), channels=1, dtype="int16", callback=heard
        )
        speaker = devices.RawOutputStream(RATE, channels=1, dtype="int16", latency="low", callback=play)
    except devices.PortAudioError as error:
        raise NoDevice(NO_DEVICE.format(what="microphone and loudspeaker", why=error)) from error
    console = Console(highlight=False)
    opening = resuming_client(
        url,
        api_key=api_key,
        stop=loudspeaker.flush,
        on_news=lambda news: console.print(news, style="dim", markup=False),
    )
    async with opening as client:
        with microphone, speaker:
            console.print("Speak. Ctrl-C ends. Wear headphones: nothing cancels the echo here.", style="dim")
            with session_end_alone():
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_send_frames(client, frames, rate), name="talk-microphone")
                    tasks.create_task(_listen(client, loudspeaker, console), name="talk-listen")


def _portaudio() -> Any:
    try:
        # Fails where the PortAudio library is missing, as on most servers.
        import sounddevice
    except OSError as error:
        raise NoDevice(NO_DEVICE.format(what="sound", why=error)) from error
    return sounddevice


def _input_rate(devices: Any) -> int:
    """24 kHz where the device does it, else its own rate."""
    try:
        devices.check_input_settings(channels=1, dtype="int16", samplerate=RATE)
    except ValueError as error:
        raise NoDevice(NO_DEVICE.format(what="microphone", why=error)) from error
    except devices.PortAudioError:
        return int(devices.query_devices(kind="input")["default_samplerate"])
    return RATE


def _put(frames: asyncio.Queue[Audio], frame: Audio) -> None:
    """When the line is a second behind, the oldest frame goes: late speech is worth less than what is said now."""
    if frames.full():
        frames.get_nowait()
    frames.put_nowait(frame)


async def _send_frames(client: RealtimeClient, frames: asyncio.Queue[Audio], rate: int) -> None:
    resampler = StreamingResampler(rate, RATE)
    while True:
        await client.append(resampler.push(await frames.get()))


async def _listen(client: RealtimeClient, loudspeaker: Loudspeaker, console: Console) -> None:
    cut: set[str] = set()
    async for arrival in client:
        match arrival.type:
            case "response.output_audio.delta" if arrival.event["item_id"] not in cut:
                loudspeaker.push(arrival.event["item_id"], pcm_samples(arrival.audio))
            case "response.output_audio.done":
                loudspeaker.finish(arrival.event["item_id"])
            case "input_audio_buffer.speech_started":
                stopped = loudspeaker.flush()
                if stopped is not None:
                    cut.add(stopped.item_id)
                    await client.truncate(stopped.item_id, stopped.played_s)
            case _:
                _print_words(arrival.event, console)


def _print_words(event: dict[str, Any], console: Console) -> None:
    match event["type"]:
        case "conversation.item.input_audio_transcription.completed" if event["transcript"]:
            console.print(f"you    {event['transcript']}", markup=False)
        case "response.output_audio_transcript.done":
            console.print(f"agent  {event['transcript']}", markup=False)
        case "response.done":
            total_ms = (event["response"].get("metadata") or {}).get("latency.total_ms")
            if total_ms is not None:
                console.print(f"       {total_ms} ms", style="dim", markup=False)
        case "session.resumed" if event["lost_items"]:
            console.print("       You were not heard to the end; please say it again.", style="red")
        case "error":
            console.print(event["error"]["message"], style="red", markup=False)
        case _:
            pass
