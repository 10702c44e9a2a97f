"""A conversation goes on from its snapshot as it would have gone on itself, and says what the loss has cost."""

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from conversation.script import LEAD_S, REPLY, World
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.conversation.commands import (
    Command,
    HistoryRestored,
    Item,
    ItemRemoved,
    ItemTruncated,
    Play,
    Refused,
    ResponseDone,
    ResponseLost,
    ResponseStarted,
    SpeechStarted,
    SpeechStopped,
    Transcribe,
)
from serve_app.conversation.conversation import Conversation
from serve_app.conversation.events import (
    Call,
    CallId,
    ChunkId,
    ItemCreated,
    ItemDeleted,
    ItemId,
    ResponseRequested,
    Returned,
    ServerVad,
    SessionConfigured,
    Settings,
    Tool,
    ToolChoice,
    TruncationRequested,
)
from serve_app.conversation.plain import NotReadable, from_plain, to_plain
from serve_app.conversation.snapshot import SCHEMA, Snapshot


def through_json(snapshot: Snapshot) -> Snapshot:
    return Snapshot.from_plain(json.loads(json.dumps(snapshot.to_plain())))


def resumed(world: World, returned: Returned = Returned(), *, epoch: int = 0) -> World:  # noqa: B008 - frozen
    """The same user in a new world, whose conversation goes on from the snapshot of the first."""
    snapshot = through_json(world.conversation.snapshot())
    other = World(reply=world.reply, parameters=world.parameters)
    other.settings = snapshot.settings
    other.conversation = Conversation(world.parameters, snapshot.settings, epoch=epoch, snapshot=snapshot)
    other.tell(returned)
    return other


def texts(world: World) -> list[tuple[str, str, str]]:
    return [(item.role, item.text, item.status) for item in world.conversation.history.items()]


# --- going on -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Act:
    kind: str
    value: float = 0.0


ACTS = st.one_of(
    st.builds(Act, st.just("asks")),
    st.builds(Act, st.just("types")),
    st.builds(Act, st.just("deletes first")),
    st.builds(Act, st.just("truncates"), st.floats(0, 3)),
    st.builds(Act, st.just("interrupts"), st.floats(0.5, 2)),
    st.builds(Act, st.just("configures"), st.floats(0.5, 1.5)),
)


def perform(world: World, act: Act) -> None:
    match act.kind:
        case "asks":
            world.asks()
        case "types":
            world.tell(ItemCreated("user", "a written word"))
            world.tell(ResponseRequested())
        case "deletes first":
            items = world.conversation.history.items()
            if items:
                world.tell(ItemDeleted(items[0].item_id))
        case "truncates":
            agents = [i for i in world.conversation.history.items() if i.role == "assistant"]
            if agents:
                world.tell(TruncationRequested(agents[-1].item_id, round(act.value * 1000)))
        case "interrupts":
            world.asks()
            world.is_silent(act.value)
            world.speaks(0.5, "wait a moment")
        case "configures":
            wanted = replace(world.conversation.settings, speed=act.value, instructions=f"at {act.value}")
            world.tell(SessionConfigured(wanted))
    world.until(lambda: world.conversation.is_at_rest(world.now), within_s=60)
    world.is_silent(1.0)


def shifted(command: Command, samples: int) -> Any:
    """The command as it would be had the audio clock begun `samples` earlier."""
    ms = samples // 16
    match command:
        case Transcribe():
            return replace(command, start=command.start + samples, stop=command.stop + samples)
        case SpeechStarted():
            return replace(command, audio_start_ms=command.audio_start_ms + ms)
        case SpeechStopped():
            return replace(command, audio_end_ms=command.audio_end_ms + ms)
        case Play():
            return replace(command, chunk_id=ChunkId(0))  # the world's count
        case ResponseDone():
            return replace(command, latency=None)  # sums of times with other roundings
        case _:
            return command


@settings(deadline=None, derandomize=True)
@given(st.lists(ACTS, max_size=4), st.lists(ACTS, min_size=1, max_size=3))
def test_a_restored_conversation_goes_on_as_the_original_does(before: list[Act], after: list[Act]):
    original = World(reply="Sure, it is here. And there is more of it.")
    original.is_silent(1.0)
    for act in before:
        perform(original, act)
    other = resumed(original)
    [restored] = [c for _, c in other.log]
    assert isinstance(restored, HistoryRestored)
    assert restored.items == original.conversation.history.items()
    other.is_silent(1.0)
    offset = original.position - other.position
    mark = len(original.log), len(other.log)
    for act in after:
        perform(original, act)
        perform(other, act)
    did = [shifted(c, 0) for _, c in original.log[mark[0] :]]
    does = [shifted(c, offset) for _, c in other.log[mark[1] :]]
    assert does == did
    assert other.conversation.history.items() == original.conversation.history.items()
    assert through_json(other.conversation.snapshot()) == through_json(original.conversation.snapshot())


def test_ids_of_another_epoch_meet_none_that_were_given_after_the_snapshot():
    world = World()
    world.asks()
    snapshot = world.conversation.snapshot()
    world.until_heard(2)
    taken = {world.last(ResponseStarted).item_id, *(i.item_id for i in world.conversation.history.items())}
    other = Conversation(world.parameters, snapshot.settings, epoch=2, snapshot=snapshot)
    other.handle(Returned(), 0.0)
    for _ in range(5):
        other.handle(ItemCreated("user", "more"), 0.0)
    given_now = {i.item_id for i in other.history.items()} - {i.item_id for i in snapshot.items}
    assert len(given_now) == 5
    assert not given_now & taken
    [refused] = other.handle(ItemCreated("user", "x", item_id=world.last(ResponseStarted).item_id), 0.0)
    assert isinstance(refused, Refused), "a client cannot take an id of an earlier life"


# --- what a loss costs ----------------------------------------------------------------------------------------------


def test_an_answer_under_way_ends_incomplete_at_what_was_sent_less_the_lead():
    world = World()
    world.asks()
    world.until_heard(6)
    started = world.last(ResponseStarted)
    [spoken] = world.conversation.snapshot().spoken
    other = resumed(world)
    lost = other.last(ResponseLost)
    assert lost.response_id == started.response_id
    assert lost.heard is not None
    assert lost.heard.audio_ms == round((spoken.sent_s - LEAD_S) * 1000)
    expected = " ".join(world.listener.words_until(started.item_id, spoken.sent_s - LEAD_S))
    assert lost.heard.text.split() == expected.split() != []
    assert texts(other)[-1] == ("assistant", lost.heard.text, "incomplete")
    assert other.last(ItemTruncated).audio_end_ms == lost.heard.audio_ms
    assert not other.all(ResponseStarted), "something of it was heard: the floor is the user's"


@pytest.mark.parametrize("named", [True, False])
def test_the_clients_position_has_the_last_word(named: bool):
    world = World()
    world.asks()
    world.until_heard(6)
    item_id = world.last(ResponseStarted).item_id
    other = resumed(world, Returned(item_id if named else None, audio_end_ms=1000))
    assert other.last(ResponseLost).heard.audio_ms == 1000  # type: ignore[union-attr]
    assert texts(other)[-1][1].split() == world.listener.words_until(item_id, 1.0)


def test_a_position_in_another_item_says_nothing_of_this_answer():
    world = World()
    world.asks()
    world.until_heard(6)
    other = resumed(world, Returned(ItemId("item_of_long_ago"), audio_end_ms=10))
    [spoken] = world.conversation.snapshot().spoken
    assert other.last(ResponseLost).heard.audio_ms == round((spoken.sent_s - LEAD_S) * 1000)  # type: ignore[union-attr]


def test_a_position_past_all_that_can_have_come_is_cut_to_it():
    world = World()
    world.asks()
    world.until_heard(3)
    other = resumed(world, Returned(audio_end_ms=10**9))
    said = texts(other)[-1][1]
    assert REPLY.startswith(said)
    assert said != REPLY, "not a word is credited that was not given to the voice"
    below = resumed(world, Returned(audio_end_ms=-5))
    assert texts(below)[-1][1] == ""


def test_an_answer_that_was_done_but_not_played_to_its_end_is_cut_too():
    world = World(reply="Well, that is easy.")
    world.asks()
    world.until(lambda: bool(world.all(ResponseDone)))
    item_id = world.last(ResponseStarted).item_id
    whole = resumed(world)
    assert texts(whole)[-1] == ("assistant", "Well, that is easy.", "completed")
    assert not whole.all(ResponseLost)
    cut = resumed(world, Returned(item_id, audio_end_ms=500))
    assert texts(cut)[-1] == ("assistant", " ".join(world.listener.words_until(item_id, 0.5)), "incomplete")
    assert not cut.all(ResponseLost), "it had its response.done"


def test_what_was_played_before_is_not_cut_by_the_next_interruption():
    world = World(reply="Well, that is easy.")
    world.asks()
    world.until(lambda: bool(world.all(ResponseDone)))
    world.is_silent(2)
    other = resumed(world)
    other.speaks(0.5, "and then")
    assert texts(other)[1] == ("assistant", "Well, that is easy.", "completed")


def test_an_answer_of_which_nothing_was_heard_is_owed_and_begins_anew():
    world = World()
    world.asks()
    world.until(lambda: bool(world.all(ResponseStarted)))
    other = resumed(world)
    kinds = [type(command) for _, command in other.log]
    assert kinds[:3] == [HistoryRestored, ResponseLost, ResponseStarted]
    other.until(lambda: bool(other.all(ResponseDone)))
    assert texts(other)[-1] == ("assistant", REPLY, "completed")


def test_an_answer_that_had_not_begun_begins():
    world = World(vad=ServerVad(create_response=False))
    world.speaks(0.5, "what is the time")
    world.is_silent(2)
    assert texts(world) == [("user", "what is the time", "completed")]
    assert not resumed(world).all(ResponseStarted)
    answering = replace(world.conversation.settings, turn_detection=ServerVad())
    snapshot = replace(world.conversation.snapshot(), is_owed=True, settings=answering)
    conversation = Conversation(world.parameters, answering, snapshot=snapshot)
    assert any(isinstance(c, ResponseStarted) for c in conversation.handle(Returned(), 0.0))


def test_a_written_answer_keeps_the_words_that_were_shown():
    world = World(settings=Settings(modality="text"))
    world.asks()

    def shown_so_far() -> str:
        response = world.conversation.snapshot().response
        return response.text if response else ""

    world.until(lambda: len(shown_so_far()) > 20)
    shown = shown_so_far()
    other = resumed(world)
    lost = other.last(ResponseLost)
    assert (lost.text, lost.heard) == (shown, None)
    assert texts(other)[-1] == ("assistant", shown.strip(), "incomplete")


def test_an_open_turn_is_lost_and_said_so():
    world = World()
    world.is_silent(1)
    world.speaks(0.5, "what is")
    started = world.last(SpeechStarted)
    other = resumed(world)
    assert other.last(HistoryRestored).lost_items == (started.item_id,)
    assert texts(other) == []


def test_a_turn_whose_words_were_not_known_yet_is_lost_and_leaves_the_history():
    world = World()
    world.delays.stt_s = 5.0
    world.is_silent(1)
    world.speaks(1.0, "what is the time")
    world.until(lambda: bool(world.conversation.snapshot().unheard))
    [item] = world.conversation.history.items()
    other = resumed(world)
    assert other.last(HistoryRestored).lost_items == (item.item_id,)
    assert other.last(ItemRemoved).item_id == item.item_id
    assert other.last(HistoryRestored).items == ()
    other.asks()
    other.until(lambda: bool(other.all(ResponseDone)))


def test_a_conversation_lost_again_before_the_return_is_the_same_snapshot():
    world = World()
    world.asks()
    world.until_heard(4)
    snapshot = world.conversation.snapshot()
    again = Conversation(world.parameters, snapshot.settings, snapshot=snapshot)
    assert again.snapshot() == snapshot


def test_returning_to_a_conversation_that_was_never_left_changes_nothing():
    world = World()
    world.asks()
    assert world.conversation.handle(Returned(), world.now) == []


# --- the mark -------------------------------------------------------------------------------------------------------


def test_the_mark_changes_with_all_that_must_be_kept_and_not_with_each_frame():
    world = World()
    marks = [world.conversation.mark]

    def has_changed() -> bool:
        marks.append(world.conversation.mark)
        return marks[-1] != marks[-2]

    world.is_silent(2)
    assert not has_changed()
    world.speaks(0.5, "what is the time")
    assert has_changed(), "a turn is open"
    world.until(lambda: bool(world.all(ResponseStarted)))
    assert has_changed(), "words of the user"
    changes = 0
    for _ in range(64):
        world.is_silent(1 / 32)
        changes += has_changed()
    assert 1 <= changes <= 8, "each segment and each second of sound, not each chunk"
    world.until(lambda: bool(world.all(ResponseDone)))
    assert has_changed()
    world.is_silent(2)
    has_changed()  # the listener came to the end of it
    world.is_silent(2)
    assert not has_changed()


# --- the schema -----------------------------------------------------------------------------------------------------


def test_a_snapshot_of_another_schema_is_refused():
    plain = World().conversation.snapshot().to_plain()
    assert Snapshot.from_plain(plain).schema == SCHEMA
    for other in (SCHEMA + 1, 0, None, "1"):
        with pytest.raises(NotReadable, match="schema"):
            Snapshot.from_plain(plain | {"schema": other})
    with pytest.raises(NotReadable):
        Snapshot.from_plain([])


@pytest.mark.parametrize(
    "change",
    [
        {"items": 3},
        {"items": [{"is": "Settings"}]},
        {"unknown": 1},
        {"history_version": "1"},
        {"history_version": True},
        {"is_owed": 1},
        {"spoken": [None]},
    ],
)
def test_a_snapshot_that_is_none_is_refused(change: dict[str, Any]):
    plain = World().conversation.snapshot().to_plain() | change
    with pytest.raises(NotReadable):
        Snapshot.from_plain(plain)
    missing = World().conversation.snapshot().to_plain()
    del missing["counts"]
    with pytest.raises(NotReadable, match="counts"):
        Snapshot.from_plain(missing)


@dataclass(frozen=True, slots=True)
class _Word:
    text: str


@dataclass(frozen=True, slots=True)
class _Number:
    value: float
    note: str = "none"


@dataclass(frozen=True, slots=True)
class _Page:
    parts: tuple[_Word | _Number, ...]
    pair: tuple[int, str] = (1, "a")
    only: _Word | None = None


def test_a_union_of_kinds_is_read_by_the_name_of_the_kind_and_new_fields_take_their_default():
    page = _Page((_Word("a"), _Number(1.5, "x")), (2, "b"), _Word("c"))
    plain = json.loads(json.dumps(to_plain(page)))
    assert from_plain(_Page, plain) == page
    del plain["parts"][1]["note"], plain["only"]
    assert from_plain(_Page, plain) == _Page((_Word("a"), _Number(1.5)), (2, "b"))
    with pytest.raises(NotReadable):
        from_plain(_Page, plain | {"parts": [{"is": "_Page", "parts": []}]})


def test_calls_their_outputs_and_the_tools_live_on():
    world = World(settings=Settings(tools=(Tool("now", "The time."),), tool_choice=ToolChoice("required")))
    call = Call(CallId("call_1"), "now", '{"zone": "UTC"}')
    history = world.conversation.history
    history.append(Item(ItemId("a"), "assistant", "", "text", call=call))
    history.append(Item(ItemId("b"), "tool", '{"time": "noon"}', "text", output_of=CallId("call_1")))
    snapshot = replace(world.conversation.snapshot(), settings=Settings(tools=(Tool("now"),)))
    assert through_json(snapshot) == snapshot
    other = Conversation(world.parameters, snapshot.settings, snapshot=through_json(snapshot))
    assert other.history.messages("") == history.messages("")
