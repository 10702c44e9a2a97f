"""Keeping a conversation inside the model's window: the oldest turns go, the rest is told as it was.

- What the conversation opens with by `system` messages stays: it is the prompt.
- A turn is what the user said (with notes of role `system` among it) and all that answers it up to the next: an
  answer, a tool's call with its output. It stays whole or goes whole, since half a turn breaks chat templates and
  leaves a tool's output without its call.
- The newest turn stays. When it does not fit even alone, the request can never succeed: BadRequest.
- Turns go by the block (a quarter of the room), not one by one: a prompt that lost its oldest turn shares no prefix
  with the last one, so all of it would be computed again at every turn of a long conversation. Where the cut lies
  follows from the conversation alone, so it is the same on every replica.
"""

import functools
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate, takewhile

from .interfaces import NO_TOOLS, BadRequest, ChatMessage, Tools

_BLOCKS = 4

_BYTES_PER_TOKEN = 3
_TOKENS_PER_MESSAGE = 8


def fit(
    messages: Sequence[ChatMessage],
    *,
    window: int,
    reserve: int,
    count: Callable[[Sequence[ChatMessage]], int],
    engine: str,
) -> Sequence[ChatMessage]:
    """`messages` without as many of their oldest turns as it takes.

    window: tokens of prompt and answer together. reserve: tokens that are kept free for the answer, at least one and
    at most half the window; the newest turn may use them, so that a long question gets a short answer and no error.
    count: the tokens of a prompt; fewer messages must not be more tokens. It is called once while everything fits and
    three or four times when something must go, since letters tell about where. Raises BadRequest, in the name of
    `engine`.
    """
    room = window - max(1, min(reserve, window // 2))
    total = count(messages)
    if total <= room:
        return messages
    prompt, turns = _split(messages)

    def without(oldest: int) -> list[ChatMessage]:
        return [*prompt, *(message for turn in turns[oldest:] for message in turn)]

    sizes = functools.cache(lambda oldest: count(without(oldest)))
    letters = list(accumulate(map(_letters, turns), initial=0))
    newest = max(0, len(turns) - 1)

    def fewest_for(size: int) -> int:
        """How many turns must go for the rest to have `size` tokens; all but the newest, where that is not enough."""
        by_letters = bisect_left(letters, (_letters(prompt) + letters[-1]) * (1 - size / total))
        return _first(lambda oldest: sizes(oldest) <= size, newest, near=min(by_letters, newest))

    block = max(1, room // _BLOCKS)
    oldest = fewest_for(total - -(-(total - room) // block) * block)
    if oldest == newest:
        # A long prompt, or a long newest turn: whatever else fits is worth more than a block.
        oldest = fewest_for(room)
    if (size := sizes(oldest)) >= window:
        message = f"the newest turn and the system prompt have {size} tokens: it exceeds the available context size of {window}"
        raise BadRequest(message, stage="llm", engine=engine)
    return without(oldest)


def with_question(messages: Sequence[ChatMessage]) -> Sequence[ChatMessage]:
    """`messages` as a prompt that chat templates accept and that begins as the next question's will.

    Some templates refuse a conversation without a user, and tell an answer otherwise once it has been followed.
    """
    if messages and messages[-1].role == "user":
        return messages
    return [*messages, ChatMessage("user", "Hello")]


def estimate(messages: Sequence[ChatMessage], tools: Tools = NO_TOOLS) -> int:
    """Tokens of a prompt where the model's tokenizer is out of reach; meant to be too many rather than too few.

    A token for three bytes of UTF-8: English has about four to a token, German and French somewhat less, Chinese and
    Japanese three to five with the vocabularies of this decade. Eight more a message, for the template's marks.
    """
    texts = [
        *(message.content + _calls(message) for message in messages),
        *(tool.name + tool.description + tool.parameters for tool in tools.offered),
    ]
    return sum(-(-len(text.encode()) // _BYTES_PER_TOKEN) + _TOKENS_PER_MESSAGE for text in texts)


def _first(holds: Callable[[int], bool], end: int, *, near: int) -> int:
    """The first number from 0 for which `holds` (and so for all after it), or `end`; quick where that is `near`."""
    low, high, step = 0, end, 1
    while low <= near < high:
        if holds(near):
            high, near = near, near - step
        else:
            low, near = near + 1, near + step
        step *= 2
    return bisect_left(range(high), True, lo=low, key=holds)


def _letters(messages: Sequence[ChatMessage]) -> int:
    return sum(len(message.content) + len(_calls(message)) for message in messages)


def _calls(message: ChatMessage) -> str:
    return "".join(call.name + call.arguments for call in message.calls)


def _split(messages: Sequence[ChatMessage]) -> tuple[list[ChatMessage], list[list[ChatMessage]]]:
    """The prompt, and the turns."""
    prompt = list(takewhile(lambda message: message.role == "system", messages))
    turns: list[list[ChatMessage]] = []
    is_answered = True
    for message in messages[len(prompt) :]:
        is_said = message.role in ("user", "system")
        if not turns or (is_said and is_answered):
            turns.append([])
        turns[-1].append(message)
        is_answered = not is_said
    return prompt, turns
