"""Engines without models: deterministic, with set latencies. For tests and load tests, and shipped for both.

Time is the event loop's: every wait is `asyncio.sleep` towards a due time on `loop.time()`, so they run on a virtual
clock and do not drift. Each engine counts its calls (`started`, `active`, `cancelled`), so that a test can see that a
call was made, is under way, or was stopped before its last item.
"""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from deployments.interfaces import (
    NO_TOOLS,
    TRANSCRIBER_RATE,
    BadRequest,
    ChatDelta,
    ChatMessage,
    EngineBusy,
    Sampling,
    SpeechChunk,
    ToolCallDelta,
    Tools,
    Transcript,
    Usage,
    WordTime,
)
from deployments.options import LlmOptions, SttOptions, TtsOptions

from .scripted_code import encode_word

SAMPLE_RATE = 24_000
"""Of the scripted voice."""
UNKNOWN_VOICE = "nobody"
"""The one voice that the scripted synthesizer does not have."""

_INTERIM_WORD_S = 0.3
"""Speech that an interim needs for a word."""
_SILENCE_PEAK = 32
"""int16; -60 dBFS."""
_SENTENCE_WORDS = 8
_KEPT_PROMPTS = 64


class _CountedCalls:
    """The calls of one engine."""

    def __init__(self) -> None:
        self.started = 0
        self.active = 0
        self.cancelled = 0
        """Stopped by cancelling or closing before the last item had been given."""

    @contextmanager
    def _counted(self) -> Iterator["_Call"]:
        call = _Call()
        self.started += 1
        self.active += 1
        try:
            yield call
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += not call.is_complete
            raise
        finally:
            self.active -= 1


@dataclass(slots=True)
class _Call:
    is_complete: bool = False


class ScriptedTranscriber(_CountedCalls):
    """Hears the `transcripts` of its options in turn, whatever was said; silence gives "" and takes no turn.

    An interim takes no turn either: it gives the first words of the next transcript, as many as there was time for.
    """

    def __init__(self, options: SttOptions) -> None:
        super().__init__()
        self._options = options.scripted
        self._given = 0
        self._finals = 0
        """Under way."""

    async def transcribe(
        self, pcm: bytes, *, language: str | None, prompt: str | None, is_interim: bool = False
    ) -> Transcript:
        if len(pcm) % 2:
            raise BadRequest(f"odd number of bytes: {len(pcm)}", stage="stt", engine="scripted")
        if is_interim and self._finals:
            raise EngineBusy("finals come before interims", stage="stt", engine="scripted")
        text = ""
        if self._options.transcripts and not _is_silent(pcm):
            text = self._options.transcripts[self._given % len(self._options.transcripts)]
            self._given += not is_interim
        if is_interim:
            spoken_s = len(pcm) / 2 / TRANSCRIBER_RATE
            text = " ".join(text.split()[: int(spoken_s / _INTERIM_WORD_S)])
        self._finals += not is_interim
        try:
            with self._counted():
                await asyncio.sleep(self._options.latency_s)
        finally:
            self._finals -= not is_interim
        return Transcript(text=text, language=language)


class ScriptedChatModel(_CountedCalls):
    """Gives the `answers` of its options in turn, one word a token, whatever was asked; and the `calls`, two pieces each.

    A call's pieces come with the answer's last word, and count as no tokens. With `prompt_words_per_s` the first token
    waits until the prompt is read, as far as it does not begin as one that was read before.
    """

    def __init__(self, options: LlmOptions) -> None:
        super().__init__()
        self._options = options.scripted
        self._read: deque[list[str]] = deque(maxlen=_KEPT_PROMPTS)
        self.prefills = 0
        """Those that came to their end."""

    async def generate(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> AsyncIterator[ChatDelta]:
        if not messages:
            raise BadRequest("no messages", stage="llm", engine="scripted")
        tokens = re.findall(r"\s*\S+", self._answer(messages))
        taken = tokens[: sampling.max_tokens] or [""]
        usage = Usage(sum(len(message.content.split()) for message in messages), len(taken))
        with self._counted() as call:
            await self._read_prompt(messages)
            start = asyncio.get_running_loop().time()
            for index, token in enumerate(taken):
                await _sleep_until(start + self._options.first_token_s + index / self._options.tokens_per_s)
                if index + 1 < len(taken):
                    yield ChatDelta(token)
            calls = list(self._calls(messages, tools))
            if calls:
                if taken[-1]:
                    yield ChatDelta(taken[-1])
                for piece in calls:
                    yield ChatDelta("", call=piece)
                taken[-1] = ""
            call.is_complete = True
            yield ChatDelta(taken[-1], "length" if len(taken) < len(tokens) else "stop", usage)

    async def prefill(
        self, messages: Sequence[ChatMessage], *, sampling: Sampling, tools: Tools = NO_TOOLS
    ) -> None:
        """Not counted among the calls."""
        if self.active:
            raise EngineBusy("answers come before prefills", stage="llm", engine="scripted")
        await self._read_prompt(messages)
        self.prefills += 1

    async def _read_prompt(self, messages: Sequence[ChatMessage]) -> None:
        prompt = [word for message in messages for word in (f"<{message.role}>", *message.content.split())]
        known = max((_shared(prompt, read) for read in self._read), default=0)
        if self._options.prompt_words_per_s:
            await asyncio.sleep((len(prompt) - known) / self._options.prompt_words_per_s)
        self._read.append(prompt)

    def _answer(self, messages: Sequence[ChatMessage]) -> str:
        answers = self._options.answers
        if not answers:
            return numbered_answer(self._options.answer_words)
        answer = answers[self.started % len(answers)]  # `started` counts the calls before this one
        outputs = [message.content for message in messages if message.role == "tool"]
        return answer.replace("{output}", outputs[-1] if outputs else "")

    def _calls(self, messages: Sequence[ChatMessage], tools: Tools) -> Iterator[ToolCallDelta]:
        if not tools.offered or (messages[-1].role == "tool" and not tools.must_call):
            return
        calls = self._options.calls or (("{}",) if tools.must_call else ())
        for index, arguments in enumerate(calls):
            call_id, half = f"scripted_{self.started}_{index}", len(arguments) // 2
            yield ToolCallDelta(index, call_id, tools.offered[0].name, arguments[:half])
            yield ToolCallDelta(index, arguments=arguments[half:])


class ScriptedSynthesizer(_CountedCalls):
    """Speaks a pair of tones a word, `scripted_code` says which; 24 kHz, one chunk a word.

    A word that ends with a number ("word12,") is coded as that number, any other as its index in the call, so that
    with the built-in answer a listener knows the words of the whole answer. Has every voice but `UNKNOWN_VOICE`.
    """

    voices: Sequence[str] = ()

    def __init__(self, options: TtsOptions) -> None:
        super().__init__()
        self._options = options.scripted

    async def synthesize(self, text: str, *, voice: str, speed: float) -> AsyncIterator[SpeechChunk]:
        if voice == UNKNOWN_VOICE:
            raise BadRequest(f"no voice {voice!r}; any other will do", stage="tts", engine="scripted")
        if not speed > 0:
            raise BadRequest(f"speed is positive, not {speed}", stage="tts", engine="scripted")
        words = list(re.finditer(r"\S+", text))
        if not words:
            return
        word_s = self._options.word_s / speed
        start = asyncio.get_running_loop().time()
        with self._counted() as call:
            for index, word in enumerate(words):
                computing_s = index * word_s * self._options.realtime_factor
                await _sleep_until(start + self._options.first_audio_s + computing_s)
                call.is_complete = index + 1 == len(words)
                yield self._chunk(index, word, word_s)

    def _chunk(self, index: int, word: re.Match[str], word_s: float) -> SpeechChunk:
        # Cut at rounded positions of the whole, so that no error adds up over the words.
        first, last = round(index * word_s * SAMPLE_RATE), round((index + 1) * word_s * SAMPLE_RATE)
        audio = encode_word(word_number(word.group(), index), last - first, SAMPLE_RATE)
        times: tuple[WordTime, ...] = ()
        if self._options.has_word_times:
            times = (WordTime(word.start(), word.end(), first / SAMPLE_RATE, last / SAMPLE_RATE),)
        pcm = np.rint(audio * 32767).astype("<i2").tobytes()
        return SpeechChunk(pcm=pcm, sample_rate=SAMPLE_RATE, words=times)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words they have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def numbered_answer(words: int) -> str:
    """The built-in answer: "word0 word1 word2, word3 ... word7. word8 ...", a clause first, then sentences."""
    return " ".join(f"word{number}{_punctuation(number, words)}" for number in range(words))


def word_number(word: str, index: int) -> int:
    """The number that the scripted voice encodes for `word`, the `index`-th of its call."""
    match = re.search(r"(\d+)\W*$", word)
    return int(match.group(1)) if match else index


def _punctuation(number: int, words: int) -> str:
    if number + 1 == words or number % _SENTENCE_WORDS == _SENTENCE_WORDS - 1:
        return "."
    return "," if number == 2 else ""


def _is_silent(pcm: bytes) -> bool:
    samples = np.frombuffer(pcm, dtype="<i2").astype(np.int32)
    return int(np.abs(samples).max(initial=0)) <= _SILENCE_PEAK


async def _sleep_until(due: float) -> None:
    await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
