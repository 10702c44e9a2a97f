"""The words of an answer: asked of the language model, cut into segments for the voice, shown and kept in the history.

A written answer is shown as it comes. A spoken one waits in segments; each is shown with its first sound, never before
(`Answering.advance`). What the agent calls is put into the history at its end, and only then becomes an item.
"""

from collections.abc import Callable

from .answer import Answer
from .commands import CallMade, Command, Generate, Item, ItemStatus, TranscriptDelta
from .events import Call, CallGenerated, Failure, GenerationFinished, TokensGenerated, Usage
from .history import History
from .parameters import Ids

NOTHING_GENERATED = Failure("llm", "engine_failed", "the language model gave no answer")


class Wording:
    def __init__(self, history: History, ids: Ids, emit: Callable[[Command], None]) -> None:
        self._history = history
        self._ids = ids
        self._emit = emit

    def ask(self, answer: Answer) -> None:
        answer.is_generated = True
        order = answer.order
        self._emit(
            Generate(
                answer.response_id, order.messages, order.max_output_tokens, order.tools, order.must_call
            )
        )

    def take_tokens(self, answer: Answer, event: TokensGenerated, now: float) -> None:
        if answer.finish_reason is not None:
            return
        answer.timeline.mark("first_token", now)
        answer.has_tokens |= bool(event.text.strip())
        answer.usage = Usage(answer.usage.input_tokens, answer.usage.output_tokens + event.tokens)
        if answer.order.modality == "text":
            self.show(answer, event.text)
            for cut in ("first_segment", "first_audio", "first_sent"):
                answer.timeline.mark(cut, now)
        else:
            self._queue(answer, answer.segmenter.push(event.text), now)

    def take_call(self, answer: Answer, event: CallGenerated, now: float) -> None:
        if answer.finish_reason is not None or answer.apology_for is not None:
            return
        answer.timeline.mark("first_token", now)
        answer.has_tokens = True
        answer.calls.append(event)

    def take_end(self, answer: Answer, event: GenerationFinished, now: float) -> Failure | None:
        """No more will be generated. Returns what is wrong with it, if that cannot be an answer."""
        if answer.apology_for is not None:
            return None
        if (
            not answer.has_tokens and event.finish_reason == "stop"
        ):  # else the limit may have cut its only call
            return NOTHING_GENERATED
        answer.finish_reason = event.finish_reason
        answer.usage = event.usage or answer.usage
        if answer.order.modality == "audio":
            self._queue(answer, answer.segmenter.flush(), now)
        return None

    def _queue(self, answer: Answer, segments: list[str], now: float) -> None:
        for text in segments:
            answer.timeline.mark("first_segment", now)
            answer.waiting.append((self._ids.segment(), text))

    def show(self, answer: Answer, text: str) -> None:
        previous = None
        if not answer.shown:
            item = Item(answer.item_id, "assistant", "", answer.order.modality, "in_progress")
            previous = self._history.append(item)
        answer.shown.append(text)
        self._emit(TranscriptDelta(answer.response_id, answer.item_id, text, previous))

    def keep(self, answer: Answer, status: ItemStatus) -> None:
        """The answer is over: the history gets its words."""
        if answer.shown:
            self._history.set_text(answer.item_id, answer.said, status=status)

    def make_calls(self, answer: Answer) -> tuple[CallMade, ...]:
        """The answer was not cut: what it calls enters the history, behind its words."""
        return tuple(self._make(call) for call in answer.calls)

    def _make(self, generated: CallGenerated) -> CallMade:
        """The engine's own id is kept where it can be: some models' templates want ids of their own shape."""
        call_id = generated.call_id
        if call_id is None or self._history.call(call_id) is not None:
            call_id = self._ids.call()
        call = Call(call_id, generated.name, generated.arguments)
        item = Item(self._ids.item(), "assistant", "", "text", call=call)
        return CallMade(item, call, self._history.append(item))
