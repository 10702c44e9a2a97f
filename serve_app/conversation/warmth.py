"""When the language model should read ahead what its next prompt will begin with.

An engine keeps what it has computed of a conversation, so a question is quick to answer if all before it is known
there. After an answer it is: prompt and answer went through the model. It is not at the start, after the client has
changed the instructions or the items, and after an answer was cut: its prompt may not have been read to its end, and
what it said is told otherwise.

Changes come in bursts (a client restores ten items, or corrects the server's cut), and the most common change is
followed by a question at once (an item, then `response.create`): so it waits until they rest.
"""

from collections.abc import Callable

from .answer import Ended
from .commands import Command, Prefill
from .events import Settings, Tool
from .history import History

Told = tuple[int, str, tuple[Tool, ...]]
"""What a model would be told: the version of the history, the instructions, and the tools."""


class Warmth:
    def __init__(self, after_s: float, history: History, emit: Callable[[Command], None]) -> None:
        self._after_s = after_s
        self._history = history
        self._emit = emit
        self._read: Told | None = None
        """By an answer."""
        self._prefilled: Told | None = None
        self._last: Prefill | None = None
        """If no answer came since."""
        self._changed: Told | None = None
        """What `deadline` was set for."""
        self.deadline: float | None = None

    def _told(self, settings: Settings) -> Told:
        return self._history.version, settings.instructions, _tools(settings)

    def read(self, settings: Settings) -> None:
        """All that is told now was given to the model."""
        self._read = self._told(settings)

    def answered(self, ended: Ended, settings: Settings) -> None:
        """Its instructions may have been its own."""
        self._last = None
        prompt = self._history.messages(settings.instructions)
        is_its_beginning = prompt[: len(ended.messages)] == ended.messages
        has_same_tools = ended.tools == _tools(settings)
        is_cut = ended.outcome in ("interrupted", "client_cancelled")
        self._read = self._told(settings) if is_its_beginning and has_same_tools and not is_cut else None

    def hold(self) -> None:
        """An answer is under way, or about to be."""
        self.deadline = self._changed = None

    def advance(self, settings: Settings, now: float) -> None:
        told = self._told(settings)
        if not self._after_s or told in (self._read, self._prefilled):
            self.hold()
            return
        if told != self._changed:
            self._changed, self.deadline = told, now + self._after_s
        if self.deadline is not None and now >= self.deadline:
            self._prefill(settings)

    def _prefill(self, settings: Settings) -> None:
        self.hold()
        messages = self._history.messages(settings.instructions)
        if not messages:
            self.read(settings)
            return
        self._prefilled = self._told(settings)
        prefill = Prefill(messages, settings.max_output_tokens, _tools(settings))
        if prefill != self._last:  # what was added may be gone again
            self._last = prefill
            self._emit(prefill)


def _tools(settings: Settings) -> tuple[Tool, ...]:
    tools, _ = settings.tool_choice.offered(settings.tools)
    return tools
