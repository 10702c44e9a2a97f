"""espeak-ng through `espeakng_loader` and ctypes: the mouth that needs no download. Robotic, and faster than speech.

The library keeps its state in globals: one voice, one rate, one callback a process. All calls of a process therefore
go through one thread (`_Library.thread`), whose queue is the lock. A synthesis runs 1000 times faster than it sounds,
so its chunks are not throttled: what waits in memory is bounded by the text. A cancel makes the callback return 1,
at which espeak stops; a call that still waits for the thread is never begun.

The C names and numbers are those of espeak-ng/speak_lib.h. espeak-ng is GPL-3: loaded at run time, never vendored.
"""

import asyncio
import ctypes
import logging
import re
import threading
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, ClassVar

import numpy as np

from deployments.interfaces import BadRequest, EngineFailed, SpeechChunk, WordTime
from deployments.options import TtsOptions

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_RATE = 1
_EVENT_WORD = 1
_CHUNK_MS = 60
_WORDS_A_MINUTE = 175
_SLOWEST, _FASTEST = 80, 900
"""Words a minute that espeak follows (measured); a speed beyond is brought to the nearest."""
_SILENT = 164
"""int16, -46 dBFS: quieter samples after a word are the pause that follows it."""
_KOKORO_VOICE = re.compile(r"[abefhijpz][fm]_\w+")
_KOKORO_LANGUAGES = {
    "a": "en-us",
    "b": "en-gb",
    "e": "es",
    "f": "fr-fr",
    "h": "hi",
    "i": "it",
    "j": "ja",
    "p": "pt-br",
    "z": "cmn",
}
log = logging.getLogger(__name__)


class EspeakSynthesizer:
    """Speech in 22,050 Hz chunks of 60 ms, with the time of each word from espeak's word events.

    A voice is a language code of espeak ("en-us", "en-gb-scotland", "de"); the name of a Kokoro voice is spoken in its
    language's espeak voice, which the log says once. `speed` 1 is 175 words a minute.
    """

    def __init__(self, options: TtsOptions) -> None:
        self._espeak = _library()
        self.voices = tuple(sorted(self._espeak.voices))
        self._substituted: set[str] = set()

    async def synthesize(self, text: str, *, voice: str, speed: float) -> AsyncIterator[SpeechChunk]:
        name = self._voice_name(voice)
        if not speed > 0:
            raise BadRequest(f"speed is positive, not {speed}", stage="tts", engine="espeak")
        if not text.strip():
            return
        rate = round(min(max(_WORDS_A_MINUTE * speed, _SLOWEST), _FASTEST))
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[SpeechChunk | None] = asyncio.Queue()

        def give(chunk: SpeechChunk | None) -> None:
            loop.call_soon_threadsafe(chunks.put_nowait, chunk)

        utterance = _Utterance(text, self._espeak.sample_rate, give)
        synthesis = loop.run_in_executor(self._espeak.thread, self._espeak.speak, utterance, name, rate)
        try:
            while (chunk := await chunks.get()) is not None:
                yield chunk
            await synthesis
        finally:
            utterance.cancelled.set()
            synthesis.cancel()

    def _voice_name(self, voice: str) -> str:
        voices = self._espeak.voices
        if voice.lower() in voices:
            return voices[voice.lower()]
        if _KOKORO_VOICE.fullmatch(voice):
            language = _KOKORO_LANGUAGES[voice[0]]
            if voice not in self._substituted:
                self._substituted.add(voice)
                log.warning("espeak speaks for a kokoro voice", extra={"voice": voice, "spoken_by": language})
            return voices[language]
        some = ", ".join(sorted(set(_KOKORO_LANGUAGES.values())))
        raise BadRequest(f"no voice {voice!r}; there are {some} and others", stage="tts", engine="espeak")


class _Utterance:
    """What becomes of one text: takes espeak's audio and word events, gives chunks with word times.

    A word is a run of characters without a space. espeak reports one event a spoken word, and several for "1234" or
    "a@b.com": they count as one, from the first. A word ends with the last loud sample before the next one begins.
    A word for which espeak has no event ("mister John" is one to it) gets no time. Each chunk is held until the next
    comes, so that the last one can carry the last word.
    """

    def __init__(self, text: str, sample_rate: int, give: Callable[[SpeechChunk | None], None]) -> None:
        self.cancelled = threading.Event()
        self.text = text
        self._give = give
        self._sample_rate = sample_rate
        self._spans = [match.span() for match in re.finditer(r"\S+", text)]
        self._starts = [start for start, _ in self._spans]
        self._audio = bytearray()
        self._held = b""
        self._word: tuple[int, int] | None = None
        """The word that sounds: its index in `_spans` and its first sample."""
        self._ended: list[WordTime] = []

    def push(self, pcm: bytes, word_events: list[tuple[int, int]]) -> None:
        """The next audio, and the (character position, sample) of the words that begin in it."""
        if pcm and self._held:
            self._give_held()
        self._audio += pcm
        self._held += pcm
        for char, sample in word_events:
            index = max(0, bisect_right(self._starts, char) - 1)
            if self._word is None or index > self._word[0]:
                self._end_word(sample)
                self._word = (index, sample)

    def finish(self) -> None:
        self._end_word(len(self._audio) // 2)
        if self._held:
            self._give_held()

    def end(self) -> None:
        """Must be called last, however the synthesis ended: the reader waits for it."""
        self._give(None)

    def _give_held(self) -> None:
        self._give(SpeechChunk(self._held, self._sample_rate, tuple(self._ended)))
        self._held = b""
        self._ended = []

    def _end_word(self, sample: int) -> None:
        if self._word is None:
            return
        index, start = self._word
        self._word = None
        samples = np.frombuffer(bytes(self._audio[2 * start : 2 * sample]), dtype="<i2")
        loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > _SILENT)
        end = start + int(loud[-1]) + 1 if len(loud) else sample
        self._ended.append(WordTime(*self._spans[index], start / self._sample_rate, end / self._sample_rate))


class _EventId(ctypes.Union):
    _fields_: ClassVar[Any] = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    _fields_: ClassVar[Any] = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


class _Voice(ctypes.Structure):
    _fields_: ClassVar[Any] = (
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


class _Library:
    """espeak-ng, initialised once a process. `speak` must run in `thread` alone."""

    def __init__(self, library: ctypes.CDLL, data_path: str) -> None:
        self._library = library
        self._library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        self.sample_rate: int = library.espeak_Initialize(
            _AUDIO_OUTPUT_SYNCHRONOUS, _CHUNK_MS, data_path.encode(), 0
        )
        if self.sample_rate <= 0:
            raise EngineFailed("espeak-ng does not initialise", stage="tts", engine="espeak")
        self.voices = self._list_voices()
        """espeak's name of the voice by its language code in lower case."""
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="espeak")
        self._utterance: _Utterance | None = None
        self._callback = _Callback(self._on_audio)
        library.espeak_SetSynthCallback(self._callback)

    def speak(self, utterance: _Utterance, voice: str, rate: int) -> None:
        """Gives the utterance its audio; returns when it is all there or the utterance is cancelled."""
        try:
            if utterance.cancelled.is_set():
                return
            self._utterance = utterance
            text = utterance.text.replace("\0", " ").encode(errors="replace")
            failed = (
                self._library.espeak_SetVoiceByName(voice.encode())
                or self._library.espeak_SetParameter(_RATE, rate, 0)
                or self._library.espeak_Synth(
                    text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, _CHARS_UTF8, None, None
                )
            )
            if failed and not utterance.cancelled.is_set():
                raise EngineFailed(f"espeak-ng error {failed}", stage="tts", engine="espeak")
            utterance.finish()
        finally:
            self._utterance = None
            utterance.end()

    def _on_audio(self, samples: Any, count: int, events: Any) -> int:
        # Any: ctypes pointers cannot be written as types in 3.11. Returning 1 stops espeak.
        utterance = self._utterance
        if utterance is None or utterance.cancelled.is_set():
            return 1
        words = []
        index = 0
        while events[index].type:
            event = events[index]
            if event.type == _EVENT_WORD:
                words.append((event.text_position - 1, event.sample))
            index += 1
        try:
            utterance.push(ctypes.string_at(samples, 2 * count) if count else b"", words)
        except RuntimeError:  # the caller's event loop is closed
            return 1
        return 0

    def _list_voices(self) -> dict[str, str]:
        listed = self._library.espeak_ListVoices(None)
        voices: dict[str, str] = {}
        index = 0
        while listed[index]:
            voice = listed[index].contents
            # `languages` is a priority byte and a code, and maybe more such pairs; the first is the voice's own.
            voices.setdefault(voice.languages[1:].decode().lower(), voice.name.decode())
            index += 1
        return voices


@cache
def _library() -> _Library:
    try:
        import espeakng_loader

        return _Library(ctypes.CDLL(espeakng_loader.get_library_path()), espeakng_loader.get_data_path())
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineFailed("`pip install espeakng-loader`", stage="tts", engine="espeak") from error
