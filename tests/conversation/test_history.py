import pytest

from serve_app.conversation.commands import Item, Message
from serve_app.conversation.events import ItemId
from serve_app.conversation.history import ROOT, History


def item(name: str, text: str = "hello", role: str = "user") -> Item:
    return Item(ItemId(name), role, text, "audio")


def history(*items: Item) -> History:
    made = History()
    for each in items:
        made.append(each)
    return made


def names(made: History) -> list[str]:
    return [each.item_id for each in made.items()]


def test_items_are_appended_in_order_and_each_learns_who_is_before_it() -> None:
    made = History()
    assert made.append(item("a")) is None
    assert made.append(item("b")) == "a"
    assert names(made) == ["a", "b"]
    assert ItemId("a") in made
    assert ItemId("c") not in made


def test_an_item_can_be_put_first_or_behind_another() -> None:
    made = history(item("a"), item("b"))
    assert made.append(item("first"), ROOT) is None
    assert made.append(item("between"), ItemId("a")) == "a"
    assert names(made) == ["first", "a", "between", "b"]


def test_an_id_is_used_once() -> None:
    with pytest.raises(ValueError, match="a"):
        history(item("a"), item("a"))


def test_an_item_behind_an_unknown_one_is_an_error_and_changes_nothing() -> None:
    made = history(item("a"))
    with pytest.raises(KeyError):
        made.append(item("b"), ItemId("c"))
    assert names(made) == ["a"]


def test_text_and_status_change_together() -> None:
    made = history(item("a", ""))
    made.set_text(ItemId("a"), "hi", status="incomplete")
    assert made.get(ItemId("a")) == Item(ItemId("a"), "user", "hi", "audio", "incomplete")


def test_text_for_an_item_that_was_deleted_is_dropped() -> None:
    made = history(item("a"))
    made.remove(ItemId("a"))
    made.set_text(ItemId("a"), "late")
    assert made.items() == ()
    assert made.get(ItemId("a")) is None


def test_removing_what_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        History().remove(ItemId("a"))


def test_the_version_counts_what_a_model_would_see() -> None:
    made = history(item("a", ""))
    assert made.version == 0, "an empty item tells a model nothing"
    versions = []
    for change in (
        lambda: made.set_text(ItemId("a"), "hi"),
        lambda: made.set_text(ItemId("a"), "hi", status="incomplete"),
        lambda: made.append(item("b", "")),
        lambda: made.remove(ItemId("b")),
        lambda: made.append(item("c")),
        lambda: made.remove(ItemId("a")),
    ):
        change()
        versions.append(made.version)
    assert versions == [1, 1, 1, 1, 2, 3]


def test_messages_begin_with_the_instructions_and_leave_out_empty_items() -> None:
    made = history(item("a", "hi"), item("b", "", "assistant"))
    assert made.messages("be kind") == (Message("system", "be kind"), Message("user", "hi"))
    assert made.messages("") == (Message("user", "hi"),)


def test_neighbours_of_one_role_become_one_message_but_not_the_system_s() -> None:
    made = history(
        item("s", "be brief", "system"),
        item("a", "I want"),
        item("gone", "", "assistant"),
        item("b", "tea"),
        item("c", "Sure", "assistant"),
    )
    assert made.messages("be kind") == (
        Message("system", "be kind"),
        Message("system", "be brief"),
        Message("user", "I want tea"),
        Message("assistant", "Sure"),
    )


def test_the_last_role_is_that_of_the_last_item_with_words() -> None:
    assert History().last_role() is None
    assert history(item("a"), item("b", "", "assistant")).last_role() == "user"
    assert history(item("a"), item("b", "yes", "assistant")).last_role() == "assistant"
