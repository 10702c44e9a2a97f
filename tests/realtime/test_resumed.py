"""What a client reads after its return: its token, the history, and the end of what was under way."""

from realtime.order import OrderChecker
from realtime.test_mapper import SDK
from realtime.wire_scripts import ANSWER, CONFIG, HEARD, RESPONSE, USER, play

from serve_app.conversation.commands import HistoryRestored, Item, ItemRemoved, ItemTruncated, ResponseLost
from serve_app.conversation.events import ItemId
from serve_app.realtime.mapper import Mapper

SPOKEN = Item(USER, "user", "What time is it?", "audio")
CUT = Item(ANSWER, "assistant", "It is", "audio", "incomplete")
LOST_TURN = ItemId("item_9")


def after_return() -> list[dict]:
    lost = ResponseLost(RESPONSE, ANSWER, "audio", "It is noon.", HEARD, (("turn", "7"),))
    script = [
        HistoryRestored((SPOKEN, CUT), (LOST_TURN,)),
        ItemRemoved(LOST_TURN),
        ItemTruncated(ANSWER, HEARD.audio_ms),
        lost,
    ]
    return play(script)


def test_the_history_and_what_was_lost_are_shown_in_an_order_that_can_be_relied_on():
    order = OrderChecker()
    events = after_return()
    for event in events:
        order.push(event)
    resumed = events[1]
    assert resumed["type"] == "session.resumed"
    assert [(item["id"], item["status"]) for item in resumed["items"]] == [
        (USER, "completed"),
        (ANSWER, "incomplete"),
    ]
    assert resumed["lost_items"] == [LOST_TURN]


def test_the_lost_response_ends_incomplete_as_the_sdk_knows_it():
    done = after_return()[-1]
    model = SDK.validate_python(done)
    assert (model.response.id, model.response.status) == (RESPONSE, "incomplete")
    assert model.response.output[0].content[0].transcript == "It is noon."
    assert model.response.metadata["heard.text"] == HEARD.text
    assert model.response.metadata["turn"] == "7"
    assert model.response.usage.total_tokens == 0


def test_a_response_that_had_shown_nothing_ends_without_an_item():
    [done] = Mapper("s", CONFIG).events(ResponseLost(RESPONSE, ANSWER, "text", "", None))
    assert SDK.validate_python(done).response.output == []
    assert done["response"]["metadata"] is None


def test_the_token_stands_beside_the_session_which_clients_send_back_to_us():
    offer = {"token": "s.secret", "within_s": 60.0}
    created = Mapper("s", CONFIG).session_created(offer)
    SDK.validate_python(created)
    assert created["resume"] == offer
    assert "secret" not in str(created["session"])
    assert "resume" not in Mapper("s", CONFIG).session_created()
