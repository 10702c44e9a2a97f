"""One caller's session: it tells the `Conversation` what happens and does what it says, and decides nothing itself.

`_decide` is the only door to the conversation. It is synchronous and all tasks share one event loop, so the loop is
the queue of facts: they are taken in one at a time, in the order in which they were learned, and no lock is needed.
What it is told while it carries out commands waits in `_facts`.

Ends: the peer leaves, a limit is reached, the peer breaks the transport's rules (1003), our own fault (1011, one log
line with its traceback). Whatever it was, every task and every engine call is over when `run` returns.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol, assert_never

import numpy as np
import numpy.typing as npt

from deployments.interfaces import DETECTOR_FRAME, TRANSCRIBER_RATE, Sampling
from serve_app.conversation.commands import (
    CancelTranscription,
    CancelWork,
    Command,
    Generate,
    InsertSilence,
    JudgeTurn,
    Notice,
    Play,
    Prefill,
    Refused,
    ResponseDone,
    ResponseStarted,
    Synthesize,
    Transcribe,
    TranscriptCompleted,
    TranscriptFailed,
    Work,
)
from serve_app.conversation.conversation import Conversation
from serve_app.conversation.events import (
    AudioCommitted,
    AudioSent,
    Closed,
    Event,
    FrameScored,
    ResponseId,
    Returned,
)
from serve_app.conversation.parameters import Parameters
from serve_app.realtime import codec
from serve_app.realtime.client_events import InputAudio
from serve_app.realtime.errors import ProtocolError
from serve_app.realtime.mapper import Mapper
from serve_app.realtime.session_config import SessionConfig, SessionKind

from .input import AudioInput
from .resumption import Lease, NotResumable, SessionSnapshot, Superseded, Token
from .stages import Engines, PrefillOutcome, StageCalls, TimeLimits
from .transport import ConnectionLost, Outbox, OutboxFull, OutgoingAudio, Transport

log = logging.getLogger("voice_serve.session")

NORMAL = 1000
SUPERSEDED = 4001
"""A close code of our own (RFC 6455 7.4.2): the session goes on at another socket, and this one must not come back."""
SERVICE_RESTART = 1012
"""The IANA registry's code for it: come back, to another replica."""
REST_POLL_S = 0.05
"""How often a session that is to move looks whether it may."""
SLICE_S = 1
"""Appended audio is taken in one second at a time: a minute of it must not hold the loop."""
UNBROKEN = 16
"""Messages of one client that are taken in without giving the others their turn."""
LIVE_FRAMES = 4
"""An append that completes more frames is no microphone's: they need not wait for those of other sessions."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What the operator sets for every session."""

    parameters: Parameters = field(default_factory=Parameters)
    time_limits: TimeLimits = field(default_factory=TimeLimits)
    sampling: Sampling = field(default_factory=Sampling)
    chunk_ms: int = 80
    max_session_s: float = 3600.0
    idle_timeout_s: float = 300.0
    send_s: float = 10.0
    max_outbox_bytes: int = 4 * 1024 * 1024
    input_backlog_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a session ended: `code` as in RFC 6455 7.4.1, `reason` a sentence for the client."""

    code: int
    reason: str
    is_peer_gone: bool = False

    @property
    def is_final(self) -> bool:
        """The session is over; after any other end it can be resumed."""
        return self.code == NORMAL


class Observer(Protocol):
    """Is told what an operator wants to know. Must not block."""

    def turn_done(self, session_id: str, done: ResponseDone) -> None: ...

    def draft_ended(self, session_id: str, *, wasted_tokens: int | None) -> None:
        """An answer begun before the end of the turn was dropped; None: it was confirmed."""
        ...

    def transcribed(
        self, session_id: str, kind: SessionKind, heard: TranscriptCompleted | TranscriptFailed
    ) -> None:
        """A turn of the user has been put into words, or could not be."""
        ...

    def prefill_ended(self, session_id: str, outcome: PrefillOutcome) -> None: ...

    def event_handled(self, session_id: str, event: Event | None, now: float) -> None:
        """Every fact with its time, None for a tick: what a replay needs."""
        ...


class Session:
    def __init__(
        self,
        session_id: str,
        transport: Transport,
        engines: Engines,
        config: SessionConfig,
        options: SessionOptions,
        observer: Observer,
        *,
        lease: Lease | None = None,
        returned: Returned | None = None,
        hears_own_events: bool = False,
    ) -> None:
        """`lease` makes it resumable, or resumes one: then `config` is that of its snapshot, and `returned` what its
        client says of the loss. `hears_own_events`: the client has asked for events that OpenAI does not have."""
        self.session_id = session_id
        self._lease = lease
        self._returned = returned or Returned()
        self._hears_own_events = hears_own_events
        self._transport = transport
        self._options = options
        self._observer = observer
        self._conversation = Conversation(
            options.parameters,
            config.settings,
            name=session_id,
            epoch=lease.generation - 1 if lease else 0,
            snapshot=lease.snapshot.conversation if lease and lease.snapshot else None,
        )
        self._mapper = Mapper(session_id, config)
        self._detector = engines.make_detector()
        self._input = AudioInput(max_turn_s=options.parameters.max_turn_s, backlog_s=options.input_backlog_s)
        self._forgets_at = 0
        self._output_format = config.output_format
        """Of the answer under way: the client was told it with `response.created`, or will be."""
        self._last_generated: ResponseId | None = None
        self._calls = StageCalls(
            engines, options.time_limits, options.sampling, options.chunk_ms, self._decide
        )
        self._outbox = Outbox(options.max_outbox_bytes)
        self._greeted = asyncio.Event()
        self._is_draining = False
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[Ending] = self._loop.create_future()
        self._facts: deque[Event | None] = deque()
        self._is_deciding = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        self._work: dict[object, set[asyncio.Task[None]]] = {}
        self._audio_lasts_until = self._loop.time()
        """When the audio taken in so far would be over if it were live."""
        self._last_event_at = self._loop.time()

    async def run(self) -> Ending:
        """Until the session ends. Cancelling it ends the session too."""
        last = None
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                pumps = [
                    tasks.create_task(pump(), name=f"{pump.__name__}-{self.session_id}")
                    for pump in (self._read, self._write, self._watch, self._keep)
                ]
                try:
                    ending = await self._over
                finally:  # nothing is begun any more, while what is under way is being cancelled
                    self._disarm()
                    last = self._snapshot()
                    self._conversation.handle(Closed(), self._loop.time())
                for task in [*pumps, *(task for work in self._work.values() for task in work)]:
                    task.cancel()
        except BaseExceptionGroup as group:
            ending = self._fault(group)
        except asyncio.CancelledError:  # in HAProxy mode the news that the peer is gone may come so
            await self._leave(last, is_final=False)
            raise
        self._release()
        # Before the close, for the client may come back at once.
        await self._leave(last, is_final=ending.is_final)
        if not ending.is_peer_gone:
            await self._transport.close(ending.code, ending.reason)
        return ending

    async def _greet(self) -> None:
        """The first events; nothing is taken in before they are on their way."""
        lease = self._lease
        self._send(self._mapper.session_created(await lease.offer(self._snapshot()) if lease else None))
        self._decide(self._returned if lease is not None and lease.snapshot is not None else None)
        self._greeted.set()

    def _release(self) -> None:
        """Its parts know each other, so they wait for the garbage collector; what is large does not."""
        self._calls.chunks.clear()
        self._outbox.clear()
        self._input.forget(self._input.end)

    def _fault(self, group: BaseExceptionGroup[BaseException]) -> Ending:
        """Our own mistake: the client learns that there was one, the log learns which."""
        log.error("session failed", exc_info=group, extra={"session": self.session_id})
        return Ending(1011, "internal error")

    def end(self, code: int, reason: str, *, is_peer_gone: bool = False) -> None:
        """Ask the session to end; the first reason counts."""
        if not self._over.done():
            self._over.set_result(Ending(code, reason, is_peer_gone))

    # --- moving -----------------------------------------------------------------------------------------------------

    def drain(self, grace_s: float) -> None:
        """The session is to move: its client is told, and it ends when nobody would hear it, or after the grace."""
        if not self._over.done() and not self._is_draining:
            self._is_draining = True
            self._spawn("move", self._move(grace_s), "move")

    def hand_over(self, token: Token) -> None:
        """Its client is back on another socket and has shown `token`. Raises NotResumable if it is not this session's."""
        if self._lease is None or not self._lease.is_opened_by(token):
            raise NotResumable
        self.end(SUPERSEDED, "this session was resumed on another socket")

    async def _move(self, grace_s: float) -> None:
        deadline = self._loop.time() + grace_s
        await self._greeted.wait()
        if self._hears_own_events:
            self._send(self._mapper.session_draining(grace_s))
        # The end of playout is no event, and rest must have come after all that is decided on the way.
        while not self._conversation.is_at_rest(self._loop.time()) and self._loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(REST_POLL_S)
        self.end(SERVICE_RESTART, "this server is being replaced: connect again, with the resume token")

    def _snapshot(self) -> str:
        config = self._mapper.config
        kept = SessionSnapshot(
            self._conversation.snapshot(),
            config.input_format,
            config.output_format,
            config.model,
            config.kind,
        )
        return kept.to_json()

    async def _keep(self) -> None:
        if self._lease is None:
            return
        try:
            await self._lease.keep(self._snapshot)
        except Superseded:
            self.end(SUPERSEDED, "this session was resumed on another socket")

    async def _leave(self, last: str | None, *, is_final: bool) -> None:
        """The last word to the store: what the session comes to, or that it is over."""
        if self._lease is not None and (is_final or last is not None):
            await self._lease.leave(None if is_final else last)

    # --- in ---------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        await self._greet()
        for number in count(1):
            try:
                frame = await self._transport.receive()
            except ConnectionLost as lost:
                code = NORMAL if lost.is_deliberate else 1001
                self.end(code, "the client left", is_peer_gone=True)
                return
            self._last_event_at = self._loop.time()
            if isinstance(frame, bytes):
                self.end(1003, "binary frames are not part of this protocol; send JSON in text frames")
                return
            try:
                await self._take_in(frame)
            except ProtocolError as error:
                self._send(self._mapper.error(error))
            if self._outbox or number % UNBROKEN == 0:  # what is there already is received without a pause
                await asyncio.sleep(0)

    async def _take_in(self, frame: str) -> None:
        event = codec.decode(frame, self._mapper.config.input_format)
        if isinstance(event, InputAudio):
            await self._hear(event)
            return
        wish = self._mapper.wish(event)
        if isinstance(wish, AudioCommitted):
            self._hear_silence(0)
        self._decide(wish)

    async def _hear(self, event: InputAudio) -> None:
        if self._is_too_far_ahead(event):
            return
        audio_format, encoded = self._mapper.config.input_format, event.encoded
        size = SLICE_S * audio_format.rate * audio_format.sample_bytes
        for start in range(0, len(encoded), size):
            frames = self._input.append(encoded[start : start + size], audio_format)
            is_live = len(frames) <= LIVE_FRAMES
            for frame in frames:
                self._decide(FrameScored(DETECTOR_FRAME, await self._probability(frame, is_live=is_live)))
            if len(encoded) >= size:
                self._forget_input()
                await asyncio.sleep(0)
        self._forget_input()

    def _forget_input(self) -> None:
        """Let go of what will not be transcribed, a second at a time."""
        if self._input.end >= self._forgets_at:
            self._forgets_at = self._input.end + TRANSCRIBER_RATE
            self._input.forget(self._conversation.input_needed_from)

    async def _probability(self, frame: npt.NDArray[np.float32], *, is_live: bool) -> float:
        if self._conversation.settings.turn_detection is None:
            return 0.0
        return await self._detector.hear(frame) if is_live else self._detector.probability(frame)

    def _is_too_far_ahead(self, event: InputAudio) -> bool:
        now, audio_format = self._loop.time(), self._mapper.config.input_format
        seconds = len(event.encoded) / (audio_format.rate * audio_format.sample_bytes)
        lasts_until = max(self._audio_lasts_until, now) + seconds
        ahead, limit = lasts_until - now, self._options.input_backlog_s
        if ahead <= limit:
            self._audio_lasts_until = lasts_until
            return False
        message = (
            f"This part ends {ahead:.0f} s ahead of real time and at most {limit:g} s are taken. "
            "It was dropped: send it again later."
        )
        self._tell(Refused("input_audio_too_fast", message, "audio", event.event_id))
        return True

    def _hear_silence(self, samples: int) -> None:
        """Zeros up to the end of a frame, so that the conversation's position is that of all audio taken in."""
        for _ in range(self._input.append_silence(samples)):
            self._decide(FrameScored(DETECTOR_FRAME, 0.0))

    # --- deciding ---------------------------------------------------------------------------------------------------

    def _decide(self, event: Event | None) -> None:
        """None: time has passed."""
        self._facts.append(event)
        if not self._is_deciding:
            self._settle()

    def _settle(self) -> None:
        self._is_deciding = True
        try:
            while self._facts:
                event, now = self._facts.popleft(), self._loop.time()
                self._observer.event_handled(self.session_id, event, now)
                conversation = self._conversation
                commands = conversation.tick(now) if event is None else conversation.handle(event, now)
                self._carry_out_all(commands)
                if commands and self._lease is not None:  # nothing worth keeping changes in silence
                    self._lease.note(conversation.mark)
        finally:
            self._is_deciding = False
        self._arm()

    def _arm(self) -> None:
        deadline = self._conversation.deadline()
        if deadline == self._timer_at:
            return
        self._disarm()
        if deadline is not None and not self._over.done():
            self._timer_at = deadline
            self._timer = self._loop.call_at(deadline, self._tick)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._timer_at = None

    def _tick(self) -> None:
        self._timer = self._timer_at = None
        try:
            self._decide(None)
        except Exception as error:  # a timer has no task that could carry it
            if not self._over.done():
                self._over.set_exception(error)

    # --- doing ------------------------------------------------------------------------------------------------------

    def _carry_out_all(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Work):
                self._do(command)
            else:
                self._tell(command)

    def _do(self, work: Work) -> None:
        match work:
            case Transcribe() | JudgeTurn():
                self._listen_to(work)
            case Prefill() | Generate():
                self._cancel(Prefill)
                self._ask(work)
            case Synthesize(response_id):
                self._spawn(response_id, self._calls.synthesize(work, self._output_format), "tts")
            case CancelTranscription(transcription_id):
                self._cancel(transcription_id)
            case CancelWork(response_id, wasted_tokens):
                self._cancel(response_id)
                if wasted_tokens is not None:
                    self._observer.draft_ended(self.session_id, wasted_tokens=wasted_tokens)
                self._calls.forget(response_id)
                self._outbox.drop_audio(response_id)
            case Play(response_id, item_id, chunk_id):
                _, encoded = self._calls.chunks.pop(chunk_id)
                text = self._mapper.audio_delta(response_id, item_id, encoded)
                self._enqueue(OutgoingAudio(chunk_id, response_id, text))
            case InsertSilence(samples):
                self._hear_silence(samples)
            case _:
                assert_never(work)

    def _listen_to(self, work: Transcribe | JudgeTurn) -> None:
        pcm = self._input.read(work.start, work.stop)
        match work:
            case Transcribe(transcription_id):
                self._spawn(transcription_id, self._calls.transcribe(work, pcm), "stt")
            case JudgeTurn():
                self._cancel(JudgeTurn)  # an opinion on an older pause is of no use
                self._spawn(JudgeTurn, self._calls.judge(work, pcm), "turn")
            case _:
                assert_never(work)

    def _ask(self, work: Prefill | Generate) -> None:
        if isinstance(work, Prefill):
            self._spawn(Prefill, self._prefill(work), "prefill")
            return
        if work.response_id != self._last_generated:  # a second try keeps the format of the first
            self._last_generated = work.response_id
            self._output_format = self._mapper.config.output_format
        self._spawn(work.response_id, self._calls.generate(work), "llm")

    async def _prefill(self, prefill: Prefill) -> None:
        outcome: PrefillOutcome = "superseded"
        try:
            outcome = await self._calls.prefill(prefill)
        finally:
            self._observer.prefill_ended(self.session_id, outcome)

    def _spawn(self, key: object, call: Coroutine[Any, Any, None], stage: str) -> None:
        task = self._tasks.create_task(call, name=f"{stage}-{key}-{self.session_id}")
        self._work.setdefault(key, set()).add(task)
        task.add_done_callback(lambda done: self._discard(key, done))

    def _discard(self, key: object, task: asyncio.Task[None]) -> None:
        running = self._work.get(key, set())
        running.discard(task)
        if not running:
            self._work.pop(key, None)

    def _cancel(self, key: object) -> None:
        for task in self._work.pop(key, set()):
            task.cancel()

    def _tell(self, notice: Notice) -> None:
        if isinstance(notice, ResponseStarted) and notice.was_drafted:
            self._observer.draft_ended(self.session_id, wasted_tokens=None)
        for event in self._mapper.events(notice):
            self._send(event)
        if isinstance(notice, ResponseDone):
            self._observer.turn_done(self.session_id, notice)
        elif isinstance(notice, TranscriptCompleted | TranscriptFailed):
            self._observer.transcribed(self.session_id, self._mapper.config.kind, notice)

    # --- out --------------------------------------------------------------------------------------------------------

    def _send(self, event: dict[str, object]) -> None:
        self._enqueue(codec.encode(event))

    def _enqueue(self, frame: str | OutgoingAudio) -> None:
        try:
            self._outbox.put(frame)
        except OutboxFull:
            limit = self._options.max_outbox_bytes
            self.end(1008, f"the client reads too slowly: {limit} bytes wait for it")

    async def _write(self) -> None:
        while True:
            frame = await self._outbox.get()
            text = frame if isinstance(frame, str) else frame.text
            try:
                async with asyncio.timeout(self._options.send_s):
                    await self._transport.send(text)
            except TimeoutError:
                self.end(1008, f"the client has read nothing for {self._options.send_s:g} s")
                return
            except ConnectionLost:
                self.end(1001, "the client left", is_peer_gone=True)
                return
            if isinstance(frame, OutgoingAudio):
                self._decide(AudioSent(frame.chunk_id))

    async def _watch(self) -> None:
        """The limits on a session's length and on its silence."""
        began = self._loop.time()
        longest, idle = self._options.max_session_s, self._options.idle_timeout_s
        while True:
            now = self._loop.time()
            if now >= began + longest:
                self.end(1000, f"the session has lasted {longest:g} s, the most that this server allows")
                return
            if now >= self._last_event_at + idle:
                self.end(1000, f"nothing came from the client for {idle:g} s")
                return
            await asyncio.sleep(min(began + longest, self._last_event_at + idle) - now)
