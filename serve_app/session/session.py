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
from itertools import count
from typing import Any, assert_never

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
    ResponseDone,
    ResponseStarted,
    Synthesize,
    Transcribe,
    TranscriptCompleted,
    TranscriptFailed,
    Work,
)
from serve_app.conversation.conversation import Conversation
from serve_app.conversation.events import AudioCommitted, Closed, Event, Returned
from serve_app.realtime import codec
from serve_app.realtime.client_events import InputAudio
from serve_app.realtime.errors import ProtocolError
from serve_app.realtime.mapper import Mapper
from serve_app.realtime.session_config import SessionConfig

from .alarm import Alarm
from .engine_work import EngineWork
from .input import AudioInput
from .listening import Listening
from .observer import Observer
from .options import SessionOptions
from .outbox import Outbox, OutgoingAudio
from .resumption import Lease, NotResumable, SessionSnapshot, Superseded, Token
from .stages import Engines, StageCalls
from .transport import NORMAL, SERVICE_RESTART, SUPERSEDED, ConnectionLost, Ending, Transport

log = logging.getLogger("voice_serve.session")

REST_POLL_S = 0.05
"""How often a session that is to move looks whether it may."""
UNBROKEN = 16
"""Messages of one client that are received without giving the others their turn."""
MOST_WAITING = 16
"""Messages that may wait for the audio before them; then nothing more is read from the socket."""
LARGE = 64 * 1024
"""A message of more characters is not kept waiting with others behind it."""


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
        # Long, for it is the plan of a session: every part of it once, and to whom each reports.
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
        self._input = AudioInput(max_turn_s=options.parameters.max_turn_s, backlog_s=options.input_backlog_s)
        self._listening = Listening(
            self._conversation,
            engines.ears,
            engines.make_detector(),
            self._input,
            backlog_s=options.input_backlog_s,
            report=self._decide,
            on_idle=self._receive_waiting,
            on_failure=self._fail,
        )
        self._waiting: deque[str] = deque()
        """What the client has sent, and cannot be taken in yet."""
        self._sending: asyncio.Handle | None = None
        """The loop's next turn, in which what was answered is sent."""
        self._unbroken = 0
        """Messages taken in since the last such turn."""
        self._last_event_id = lease.snapshot.last_event_id if lease and lease.snapshot else ""
        self._calls = StageCalls(
            engines, options.time_limits, options.sampling, options.chunk_ms, self._decide
        )
        self._tasks = asyncio.TaskGroup()
        self._work = EngineWork(session_id, self._tasks, self._calls, self._input, self._mapper, observer)
        self._lasting: list[asyncio.Task[None]] = []
        """Tasks that nothing but the end of the session ends."""
        self._outbox = Outbox(
            transport,
            max_bytes=options.max_outbox_bytes,
            send_s=options.send_s,
            report=self._decide,
            end=self.end,
            on_failure=self._fail,
        )
        self._greeted = asyncio.Event()
        self._grace_s: float | None = None
        """The session is to move, and has so long to come to rest."""
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[Ending] = self._loop.create_future()
        self._facts: deque[Event | None] = deque()
        self._is_deciding = False
        self._alarm = Alarm(lambda: self._decide(None), self._fail)
        """When the conversation wants to be asked again."""
        self._last_event_at = self._loop.time()

    async def run(self) -> Ending:
        """Until the session ends. Cancelling it ends the session too."""
        last = None
        try:
            async with self._tasks:
                for pump in (self._read, self._outbox.write, self._watch, self._keep):
                    self._begin(pump(), pump.__name__)
                if self._grace_s is not None:
                    self._begin(self._move(self._grace_s), "move")
                try:
                    ending = await self._over
                finally:  # nothing is begun any more, while what is under way is being cancelled
                    self._alarm.end()
                    self._listening.stop()
                    last = self._snapshot()
                    self._conversation.handle(Closed(), self._loop.time())
                for task in self._lasting:
                    task.cancel()
                self._work.cancel_all()
        except BaseExceptionGroup as group:
            ending = self._fault(group)
        except asyncio.CancelledError as error:  # in HAProxy mode the news that the peer is gone may come so
            await self._leave(last, is_final=False)
            error.__traceback__ = None  # it knows the task group's frame, which knows the error: a circle
            raise
        finally:
            self._release()
        # Before the close, for the client may come back at once.
        await self._leave(last, is_final=ending.is_final)
        if not ending.is_peer_gone:
            await self._transport.close(ending.code, ending.reason)
        return ending

    def _begin(self, course: Coroutine[Any, Any, None], name: str) -> None:
        self._lasting.append(self._tasks.create_task(course, name=f"{name}-{self.session_id}"))

    async def _greet(self) -> None:
        """The first events; nothing is taken in before they are on their way."""
        lease = self._lease
        self._send(self._mapper.session_created(await lease.offer(self._snapshot()) if lease else None))
        self._decide(self._returned if lease is not None and lease.snapshot is not None else None)
        self._greeted.set()

    def _release(self) -> None:
        """Its parts know it: parted from them, it is gone at once and does not wait for the garbage collector.

        A turn is hundreds of objects and its audio; piled up between full collections, they leave memory in pieces.
        """
        self._waiting.clear()
        self._lasting.clear()
        del self._listening, self._calls, self._work, self._outbox, self._tasks, self._alarm

    def _fault(self, group: BaseExceptionGroup[BaseException]) -> Ending:
        """Our own mistake: the client learns that there was one, the log learns which."""
        log.error("session failed", exc_info=group, extra={"session": self.session_id})
        return Ending(1011, "internal error")

    def end(self, ending: Ending) -> None:
        """Ask the session to end; the first reason counts."""
        if not self._over.done():
            self._over.set_result(ending)

    # --- moving -----------------------------------------------------------------------------------------------------

    def drain(self, grace_s: float) -> None:
        """The session is to move: its client is told, and it ends when nobody would hear it, or after the grace.

        Before `run` too: a session that was on its way in when its replica was told to go.
        """
        if self._over.done() or self._grace_s is not None:
            return
        self._grace_s = grace_s
        if self._lasting:
            self._begin(self._move(grace_s), "move")

    def hand_over(self, token: Token) -> None:
        """Its client is back on another socket and has shown `token`. Raises NotResumable if it is not this session's."""
        if self._lease is None or not self._lease.is_opened_by(token):
            raise NotResumable
        self.end(Ending(SUPERSEDED, "this session was resumed on another socket"))

    async def _move(self, grace_s: float) -> None:
        deadline = self._loop.time() + grace_s
        await self._greeted.wait()
        if self._hears_own_events:
            self._send(self._mapper.session_draining(grace_s))
        # The end of playout is no event, and rest must have come after all that is decided on the way.
        while not self._conversation.is_at_rest(self._loop.time()) and self._loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(REST_POLL_S)
        self.end(
            Ending(SERVICE_RESTART, "this server is being replaced: connect again, with the resume token")
        )

    def _snapshot(self) -> str:
        snapshot = self._conversation.snapshot()
        return SessionSnapshot.of(snapshot, self._mapper.config, self._last_event_id).to_json()

    async def _keep(self) -> None:
        if self._lease is None:
            return
        try:
            await self._lease.keep(self._snapshot)
        except Superseded:
            self.end(Ending(SUPERSEDED, "this session was resumed on another socket"))

    async def _leave(self, last: str | None, *, is_final: bool) -> None:
        """The last word to the store: what the session comes to, or that it is over."""
        if self._lease is not None and (is_final or last is not None):
            await self._lease.leave(None if is_final else last)

    # --- in ---------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """By ASGI: all that comes, or what is left of it where the transport delivers text at once."""
        await self._greet()
        self._transport.deliver_to(self._receive)
        for number in count(1):
            try:
                frame = await self._transport.receive()
            except ConnectionLost as lost:
                code = NORMAL if lost.is_deliberate else 1001
                self.end(Ending(code, "the client left", is_peer_gone=True))
                return
            if isinstance(frame, bytes):
                self.end(
                    Ending(1003, "binary frames are not part of this protocol; send JSON in text frames")
                )
                return
            self._receive(frame)
            await self._listening.until_idle()
            if self._outbox or number % UNBROKEN == 0:  # what is there already is received without a pause
                await asyncio.sleep(0)

    def _receive(self, text: str) -> None:
        """A text frame; it waits while the audio before it is taken in, or an answer to it is sent. Never raises."""
        if self._over.done():
            return
        self._last_event_at = self._loop.time()
        if self._is_free and not self._waiting:
            self._take_in(text)
            return
        self._waiting.append(text)
        if len(self._waiting) == MOST_WAITING or len(text) > LARGE:
            self._transport.pause()

    def _receive_waiting(self) -> None:
        while self._waiting and self._is_free and not self._over.done():
            self._take_in(self._waiting.popleft())
            if not self._waiting:
                self._transport.resume()

    @property
    def _is_free(self) -> bool:
        return self._sending is None and not self._listening.is_busy

    def _take_in(self, text: str) -> None:
        try:
            self._act_on(text)
        except ProtocolError as error:
            self._send(self._mapper.error(error))
        except Exception as error:
            self._fail(error)
        self._unbroken += 1
        if (self._outbox or self._unbroken >= UNBROKEN) and self._sending is None:
            self._sending = self._loop.call_soon(self._sent)

    def _sent(self) -> None:
        """The writer and the others have had a turn; a client that reads may ask for much."""
        self._sending = None
        self._unbroken = 0
        self._receive_waiting()

    def _act_on(self, text: str) -> None:
        audio_format = self._mapper.config.input_format
        event = codec.decode(text, audio_format)
        if isinstance(event, InputAudio):
            refusal = self._listening.hear(event, audio_format)
            if refusal is not None:
                self._tell(refusal)
            return
        self._last_event_id = event.event_id or self._last_event_id
        wish = self._mapper.wish(event)
        if isinstance(wish, AudioCommitted):
            self._listening.hear_silence(0)
        self._decide(wish)

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
        if not self._over.done():
            self._alarm.set(self._conversation.deadline())

    def _fail(self, error: Exception) -> None:
        """Of what the loop calls: there is no task that could carry it."""
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
            case Transcribe() | JudgeTurn() | Prefill() | Generate() | Synthesize():
                self._work.begin(work)
            case CancelTranscription(transcription_id):
                self._work.cancel(transcription_id)
            case CancelWork(response_id, wasted_tokens):
                self._work.cancel(response_id)
                if wasted_tokens is not None:
                    self._observer.draft_ended(self.session_id, wasted_tokens=wasted_tokens)
                self._calls.forget(response_id)
                self._outbox.drop_audio(response_id)
            case Play(response_id, item_id, chunk_id):
                _, encoded = self._calls.chunks.pop(chunk_id)
                text = self._mapper.audio_delta(response_id, item_id, encoded)
                self._outbox.put(OutgoingAudio(chunk_id, response_id, text))
            case InsertSilence(samples):
                self._listening.hear_silence(samples)
            case _:
                assert_never(work)

    def _tell(self, notice: Notice) -> None:
        if isinstance(notice, ResponseStarted) and notice.was_drafted:
            self._observer.draft_ended(self.session_id, wasted_tokens=None)
        for event in self._mapper.events(notice):
            self._send(event)
        if isinstance(notice, ResponseDone):
            self._observer.turn_done(self.session_id, notice)
        elif isinstance(notice, TranscriptCompleted | TranscriptFailed):
            self._observer.transcribed(self.session_id, self._mapper.config.kind, notice)

    def _send(self, event: dict[str, object]) -> None:
        self._outbox.put(codec.encode(event))

    # --- its limits -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """A session's length and its silence are bounded."""
        began = self._loop.time()
        longest, idle = self._options.max_session_s, self._options.idle_timeout_s
        while True:
            now = self._loop.time()
            if now >= began + longest:
                self.end(
                    Ending(1000, f"the session has lasted {longest:g} s, the most that this server allows")
                )
                return
            if now >= self._last_event_at + idle:
                self.end(Ending(1000, f"nothing came from the client for {idle:g} s"))
                return
            await asyncio.sleep(min(began + longest, self._last_event_at + idle) - now)
