"""The page, in a real browser, against the scripted server."""

from collections.abc import Callable
from pathlib import Path

import pytest
from driver import OpenPageFactory
from stub_server import ANSWER, LATENCY_MS, LINES, StubServer

pytestmark = pytest.mark.browser
Say = Callable[..., Path]


async def test_a_spoken_turn_is_answered_and_shown(
    open_page: OpenPageFactory, stub: StubServer, say: Say
) -> None:
    stub.answer_s = 3.0
    async with open_page(stub.url, say(1.0, 1.5, 8.0)) as opened:
        page = opened.page
        await page.click("#talk")
        await opened.until("state.floor === 'user'")
        await opened.until("state.floor === 'agent'")
        await opened.until("state.floor === 'listening' && state.turns === 1")
        assert await page.text_content(".entry.user .words") == LINES[0]
        assert await page.text_content(".entry.agent .words") == ANSWER
        assert f"{LATENCY_MS['total']} ms" in await page.text_content(".latency .total")
        assert await page.locator(".latency .part").count() == 6
        assert "130 ms" in await page.text_content(".legend")
        state = await opened.state()
        assert state["truncations"] == []
        assert list(state["playedByItem"].values()) == [pytest.approx(3000, abs=1)]
        assert opened.complaints == []
    assert all(len(event["audio"]) == 1280 for event in stub.of_type("input_audio_buffer.append"))


async def test_barge_in_stops_playback_and_truncates_at_what_was_played(
    open_page: OpenPageFactory, stub: StubServer, say: Say
) -> None:
    async with open_page(stub.url, say(1.0, 1.5, 4.0, 1.2, 6.0)) as opened:
        page = opened.page
        await page.click("#talk")
        await opened.until("state.truncations.length === 1")
        state = await opened.state()
        await opened.until("state.floor === 'agent'")
        await page.wait_for_selector(".unheard")
        after = await opened.state()
        heard = await page.evaluate("document.querySelector('.entry.agent .words').firstChild.textContent")
        assert opened.complaints == []
    [stop], [cut] = state["stops"], state["truncations"]
    assert stop["atMs"] - state["speechStarts"][1]["atMs"] < 100
    assert after["playedByItem"][cut["itemId"]] <= stop["playedMs"]
    [truncate] = stub.of_type("conversation.item.truncate")
    assert (truncate["item_id"], truncate["content_index"]) == (cut["itemId"], 0)
    assert truncate["audio_end_ms"] == int(stop["playedMs"])
    sent_for_ms = playing_ms(stub, cut["itemId"])
    assert sent_for_ms - 350 < truncate["audio_end_ms"] <= sent_for_ms + 50
    share = truncate["audio_end_ms"] / 1000 / stub.answer_s
    words = ANSWER.split(" ")
    assert heard == " ".join(words[: int(len(words) * share)])


def playing_ms(stub: StubServer, item_id: str) -> float:
    """From the first audio that the server sent of the item to its second speech_started."""
    deltas = stub.sent_of_type("response.output_audio.delta")
    began = next(at for at, event in deltas if event["item_id"] == item_id)
    _, (interrupted, _) = stub.sent_of_type("input_audio_buffer.speech_started")[:2]
    return (interrupted - began) * 1000


async def test_a_written_message_is_answered_without_a_microphone(
    open_page: OpenPageFactory, stub: StubServer
) -> None:
    stub.answer_s = 1.0
    async with open_page(stub.url) as opened:
        await opened.page.fill("#message", "How are you?")
        await opened.page.press("#message", "Enter")
        await opened.until("state.turns === 1 && state.floor === 'ready'")
        assert await opened.page.text_content(".entry.user .words") == "How are you?"
        assert await opened.page.text_content(".entry.agent .words") == ANSWER
        assert opened.complaints == []
    [item] = stub.of_type("conversation.item.create")
    assert item["item"]["content"] == [{"type": "input_text", "text": "How are you?"}]
    assert len(stub.of_type("response.create")) == 1


async def test_a_written_message_interrupts_the_answer(open_page: OpenPageFactory, stub: StubServer) -> None:
    async with open_page(stub.url) as opened:
        await opened.page.fill("#message", "Tell me a story.")
        await opened.page.press("#message", "Enter")
        await opened.until("state.floor === 'agent' && state.playedMs > 500")
        await opened.page.fill("#message", "A shorter one.")
        await opened.page.press("#message", "Enter")
        await opened.until("state.truncations.length === 1 && Object.keys(state.playedByItem).length === 2")
        assert opened.complaints == []
    sent = [event["type"] for _, event in stub.received]
    assert sent[2:] == [
        "conversation.item.truncate",
        "response.cancel",
        "conversation.item.create",
        "response.create",
        "conversation.item.retrieve",
    ]


async def test_settings_go_to_the_server_and_are_kept(
    open_page: OpenPageFactory, stub: StubServer, say: Say
) -> None:
    async with open_page(stub.url, say(20.0)) as opened:
        page = opened.page
        await page.click("#talk")
        await opened.until("state.floor === 'listening'")
        assert await page.is_disabled("#apply")
        await page.fill("#instructions", "Answer in rhymes.")
        await page.select_option("#voice", "af_heart")
        await page.select_option("#language", "de")
        await page.click("#apply")
        await page.wait_for_selector("text=In use from the next answer.")
        await page.reload()
        assert await page.input_value("#instructions") == "Answer in rhymes."
        await page.click("#talk")
        await opened.until("state.floor === 'listening'")
        await page.wait_for_selector("text=In use from the next answer.")
        assert opened.complaints == []
    first, second = stub.of_type("session.update")
    assert first["session"] == second["session"]
    assert first["session"] == {
        "type": "realtime",
        "instructions": "Answer in rhymes.",
        "audio": {"input": {"transcription": {"language": "de"}}, "output": {"voice": "af_heart"}},
    }


async def test_an_error_is_a_note_that_can_be_dismissed(
    open_page: OpenPageFactory, stub: StubServer, say: Say
) -> None:
    async with open_page(stub.url, say(20.0)) as opened:
        page = opened.page
        await page.click("#talk")
        await page.wait_for_selector("#voice option[value=bm_george]", state="attached")
        await opened.until("state.floor === 'listening'")
        await page.select_option("#voice", "bm_george")
        await page.click("#apply")
        note = page.locator(".notice")
        await note.wait_for()
        assert "There is no voice bm_george here." in await note.text_content()
        await page.click("text=×")
        assert await note.count() == 0
        assert (await opened.state())["floor"] == "listening"


async def test_a_refused_microphone_is_explained(open_page: OpenPageFactory, stub: StubServer) -> None:
    refusing = ["--use-fake-device-for-media-stream", "--deny-permission-prompts"]
    async with open_page(stub.url, switches=refusing) as opened:
        await opened.page.click("#talk")
        await opened.page.wait_for_selector("text=The microphone was refused.")
        assert (await opened.state())["floor"] == "idle"
    assert stub.received == []


async def test_a_machine_without_a_microphone_is_told(open_page: OpenPageFactory, stub: StubServer) -> None:
    async with open_page(stub.url) as opened:
        await opened.page.click("#talk")
        await opened.page.wait_for_selector("text=No microphone was found.")
        assert (await opened.state())["floor"] == "idle"


async def test_a_full_server_is_said_in_words(open_page: OpenPageFactory, stub: StubServer, say: Say) -> None:
    stub.is_full = True
    async with open_page(stub.url, say(20.0)) as opened:
        await opened.page.click("#talk")
        await opened.page.wait_for_selector(
            "text=The server is full (4 sessions a replica); try again in a moment."
        )
        state = await opened.state()
        assert state["closes"][0]["code"] == 1013
        assert await opened.page.locator(".notice").count() == 1
        assert state["floor"] == "idle"
        assert await opened.page.text_content("#talk-label") == "Talk"


async def test_a_server_that_starts_is_waited_for(open_page: OpenPageFactory, stub: StubServer) -> None:
    stub.unready_polls = 1
    async with open_page(stub.url) as opened:
        await opened.page.wait_for_selector("text=the language model: loading the model")
        await opened.page.wait_for_selector("#server-state[data-state=ready]")
        assert "voice-serve models pull" in await opened.page.text_content("#engines .fallback")


async def test_a_key_is_asked_for_only_where_it_is_needed(
    open_page: OpenPageFactory, stub: StubServer, say: Say
) -> None:
    stub.api_key = "secret"
    async with open_page(stub.url, say(20.0)) as opened:
        page = opened.page
        await page.wait_for_selector("#key-form:not([hidden])")
        await page.click("#talk")
        await page.wait_for_selector("text=A valid API key is needed")
        await page.fill("#api-key", "secret")
        await page.press("#api-key", "Enter")
        await page.wait_for_selector("#engines .fallback")
        assert await page.is_hidden("#key-form")
        await page.click("#talk")
        await opened.until("state.floor === 'listening'")


async def test_a_lost_connection_is_said_and_talk_starts_anew(
    open_page: OpenPageFactory, stub: StubServer, say: Say
) -> None:
    async with open_page(stub.url, say(20.0)) as opened:
        await opened.page.click("#talk")
        await opened.until("state.floor === 'listening'")
        await stub.drop_clients()
        await opened.page.wait_for_selector("text=The connection was lost")
        await opened.page.click("#talk")
        await opened.until("state.floor === 'listening'")
        assert await opened.page.locator(".notice").count() == 0


async def test_a_lost_connection_is_come_back_from(
    open_page: OpenPageFactory, stub: StubServer, say: Say
) -> None:
    """In the middle of an answer: what was played is reported, the rest is not heard, and the next turn is answered."""
    stub.is_resumable, stub.refusals_before_resume, stub.answer_s = True, 1, 4.0
    async with open_page(stub.url, say(1.0, 1.5, 8.0, 1.2, 20.0)) as opened:
        page = opened.page
        await page.click("#talk")
        await opened.until("state.floor === 'agent' && state.playedMs > 800")
        await stub.drop_clients()
        await page.wait_for_selector("text=Looking for the conversation")
        await opened.until("state.resumes.length === 1")
        state = await opened.state()
        [resumed] = state["resumes"]
        assert resumed["isBack"] is True
        assert await page.locator(".notice").count() == 0
        await page.wait_for_selector(".unheard")
        await opened.until("state.turns === 1 && state.floor === 'listening'", timeout_s=30)
        assert await page.locator(".entry.user").count() == 2
        assert await page.text_content(".entry.user >> nth=0 >> .words") == LINES[0]
    first, second = stub.returns
    assert first["resume"] == second["resume"] == "sess_1.token1"
    assert int(second["audio_end_ms"]) == int(resumed["stopped"]["playedMs"]) > 700
    assert second["item_id"] == resumed["stopped"]["itemId"]
    assert len(stub.of_type("session.update")) == 0


@pytest.mark.parametrize("again", [["response.create"], []], ids=["it says what it knows", "it does not"])
async def test_what_is_typed_while_the_connection_is_lost_is_sent_once_it_is_back(
    open_page: OpenPageFactory, stub: StubServer, again: list[str]
) -> None:
    """With what had been sent and not taken in; what the server knows of, and sound, is not sent again."""
    stub.is_resumable, stub.refusals_before_resume, stub.answer_s = True, 2, 0.5

    async def ask(text: str) -> None:
        await opened.page.fill("#message", text)
        await opened.page.press("#message", "Enter")

    async with open_page(stub.url) as opened:
        await ask("First.")
        await opened.until("state.turns === 1 && state.floor === 'ready'")
        stub.last_event_id = stub.of_type("conversation.item.create")[0]["event_id"] if again else None
        await stub.drop_clients()
        await opened.page.wait_for_selector("text=Looking for the conversation")
        await ask("Second.")
        await opened.until(f"state.turns === {2 + len(again)}")
        assert (await opened.state())["resumes"][0]["isBack"] is True
    sent = [event for _, event in stub.received]
    kinds = ["conversation.item.create", "response.create"]
    assert [event["type"] for event in sent] == [*kinds, *again, *kinds]
    assert [e["item"]["content"][0]["text"] for e in stub.of_type("conversation.item.create")] == [
        "First.",
        "Second.",
    ]
    assert not again or sent[1]["event_id"] == sent[2]["event_id"]


async def test_a_session_that_is_gone_is_said_and_talk_starts_anew(
    open_page: OpenPageFactory, stub: StubServer, say: Say
) -> None:
    stub.is_resumable, stub.refuses_to_resume = True, True
    async with open_page(stub.url, say(20.0)) as opened:
        await opened.page.click("#talk")
        await opened.until("state.floor === 'listening'")
        await stub.drop_clients()
        await opened.page.wait_for_selector("text=and this conversation with it")
        assert (await opened.state())["floor"] == "idle"
        assert len(stub.returns) == 1, "a token that opens nothing is not tried twice"
        await opened.page.click("#talk")
        await opened.until("state.floor === 'listening'")
        await opened.page.click("#talk")


async def test_stop_ends_the_search_for_a_session(
    open_page: OpenPageFactory, stub: StubServer, say: Say
) -> None:
    stub.is_resumable, stub.refusals_before_resume = True, 100
    async with open_page(stub.url, say(20.0)) as opened:
        await opened.page.click("#talk")
        await opened.until("state.floor === 'listening'")
        await stub.drop_clients()
        await opened.page.wait_for_selector("text=Looking for the conversation")
        await opened.page.click("#talk")
        await opened.until("state.floor === 'idle'")
        tried = len(stub.returns)
        await opened.page.wait_for_timeout(1500)
        assert len(stub.returns) <= tried + 1, "one may have been under way"
        assert (await opened.state())["floor"] == "idle"


async def test_a_page_from_another_machine_names_the_remedy(
    open_page: OpenPageFactory, stub: StubServer
) -> None:
    url = stub.url.replace("127.0.0.1", "voice.test")
    resolve = "--host-resolver-rules=MAP voice.test 127.0.0.1"
    async with open_page(url, switches=[resolve]) as opened:
        await opened.page.wait_for_selector("text=ssh -L")
        await opened.page.click("#talk")
        assert (await opened.state())["floor"] == "idle"
        assert await opened.page.locator(".notice").count() == 1


async def test_space_starts_and_stops_but_not_while_writing(
    open_page: OpenPageFactory, stub: StubServer, say: Say
) -> None:
    async with open_page(stub.url, say(20.0)) as opened:
        await opened.page.focus("#message")
        await opened.page.keyboard.press("Space")
        assert (await opened.state())["floor"] == "idle"
        await opened.page.evaluate("document.activeElement.blur()")
        await opened.page.keyboard.press("Space")
        await opened.until("state.floor === 'listening'")
        await opened.page.keyboard.press("Space")
        await opened.until("state.floor === 'idle'")
