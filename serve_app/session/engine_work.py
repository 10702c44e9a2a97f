"""The engine calls that a session has under way: tasks, each under the id of what it is for, by which it is cancelled."""

import asyncio
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any, assert_never

from serve_app.conversation.commands import Generate, JudgeTurn, Prefill, Synthesize, Transcribe
from serve_app.conversation.events import ResponseId
from serve_app.realtime.mapper import Mapper

from .input import AudioInput
from .observer import Observer
from .stages import PrefillOutcome, StageCalls


class EngineWork:
    def __init__(
        self,
        session_id: str,
        tasks: asyncio.TaskGroup,
        calls: StageCalls,
        audio: AudioInput,
        mapper: Mapper,
        observer: Observer,
    ) -> None:
        self._session_id = session_id
        self._tasks = tasks
        self._calls = calls
        self._input = audio
        self._mapper = mapper
        self._observer = observer
        self._context = copy_context()
        """Of the caller's request: a message or a timer begins work in the loop's own, where Ray finds no request."""
        self._running: dict[object, set[asyncio.Task[None]]] = {}
        self._output_format = mapper.config.output_format
        """Of the answer under way: the client was told it with `response.created`, or will be."""
        self._last_generated: ResponseId | None = None

    def begin(self, work: Transcribe | JudgeTurn | Prefill | Generate | Synthesize) -> None:
        match work:
            case Transcribe(transcription_id, start, stop):
                pcm = self._input.read(start, stop)
                self._spawn(transcription_id, self._calls.transcribe(work, pcm), "stt")
            case JudgeTurn(_, start, stop):
                pcm = self._input.read(start, stop)
                self.cancel(JudgeTurn)  # an opinion on an older pause is of no use
                self._spawn(JudgeTurn, self._calls.judge(work, pcm), "turn")
            case Prefill():
                self.cancel(Prefill)
                self._spawn(Prefill, self._prefill(work), "prefill")
            case Generate(response_id):
                self.cancel(Prefill)
                if response_id != self._last_generated:  # a second try keeps the format of the first
                    self._last_generated = response_id
                    self._output_format = self._mapper.config.output_format
                self._spawn(response_id, self._calls.generate(work), "llm")
            case Synthesize(response_id):
                self._spawn(response_id, self._calls.synthesize(work, self._output_format), "tts")
            case _:
                assert_never(work)

    def cancel(self, key: object) -> None:
        for task in self._running.pop(key, set()):
            task.cancel()

    def cancel_all(self) -> None:
        for running in self._running.values():
            for task in running:
                task.cancel()

    async def _prefill(self, prefill: Prefill) -> None:
        outcome: PrefillOutcome = "superseded"
        try:
            outcome = await self._calls.prefill(prefill)
        finally:
            self._observer.prefill_ended(self._session_id, outcome)

    def _spawn(self, key: object, call: Coroutine[Any, Any, None], stage: str) -> None:
        name = f"{stage}-{key}-{self._session_id}"
        task = self._tasks.create_task(call, name=name, context=self._context.copy())
        self._running.setdefault(key, set()).add(task)
        task.add_done_callback(lambda done: self._discard(key, done))

    def _discard(self, key: object, task: asyncio.Task[None]) -> None:
        running = self._running.get(key, set())
        running.discard(task)
        if not running:
            self._running.pop(key, None)
