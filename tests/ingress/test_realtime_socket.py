"""`/v1/realtime` from the handshake to the close: who gets in, who is refused and what they are told."""

import asyncio
import logging
from typing import Any, ClassVar

import pytest
from ingress.asgi import Socket, connected, server_of
from session.calls import active_calls, scripted
from session.virtual import the_loop, virtual_time

from deployments.interfaces import EngineFailed
from serve_app.access import is_origin_allowed
from serve_app.config import Access
from serve_app.session.stages import Engines
from serve_app.socket_transport import CLOSE_S, SocketTransport

KEY = "sk-right"


def refusal(socket: Socket) -> str:
    """The code of the error event that came before the close."""
    (event,) = socket.events
    assert event["type"] == "error"
    code: str = event["error"]["code"]
    assert socket.closed is not None
    assert socket.closed[1] == event["error"]["message"][: len(socket.closed[1])]
    return code


# --- the handshake --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], None),
        (["realtime"], "realtime"),
        (["realtime", "openai-insecure-api-key.x"], "realtime"),
        (["graphql"], None),
    ],
)
@virtual_time
async def test_the_subprotocol_realtime_is_echoed_and_no_other(offered: list[str], chosen: str | None):
    async with connected(server_of(), subprotocols=offered) as socket:
        await socket.until("session.created")
        assert socket.accepted is not None
        assert socket.accepted.get("subprotocol") == chosen


@virtual_time
async def test_the_session_shows_what_was_configured_and_asked_for():
    server = server_of(
        llm={"engine": "scripted", "system_prompt": "Be kind."}, turn_taking={"silence_duration_ms": 400}
    )
    async with connected(server, query="model=gpt-realtime") as socket:
        session = (await socket.until("session.created"))["session"]
    assert session["model"] == "gpt-realtime"
    assert session["instructions"] == "Be kind."
    assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 400
    assert session["audio"]["output"]["voice"] == "af_heart"


@virtual_time
async def test_a_whole_turn_and_a_hang_up():
    engines = scripted()
    server = server_of(engines=engines)
    async with connected(server) as socket:
        response = await socket.spoken_turn()
        assert response["status"] == "completed"
        assert server.session_count == 1
        socket.send({"type": "response.create"})
        await socket.until("response.created", count=2)
    assert server.session_count == 0
    assert active_calls(engines) == 0


@virtual_time
async def test_a_caller_who_is_gone_before_the_session_began_leaves_nothing():
    server = server_of()
    for frames in range(3):
        async with connected(server) as socket:
            for _ in range(frames):
                socket.send({"type": "response.create"})
            socket.hang_up()
        assert server.session_count == 0


@pytest.mark.parametrize(
    ("named", "spoken_by"), [("af_heart:0.7,any:0.3",) * 2, ("shimmer", "af_heart"), ("any", "any")]
)
@virtual_time
async def test_a_voice_of_the_session_and_one_of_a_response_reach_the_engine(named: str, spoken_by: str):
    for where in ("session", "response"):
        engines = scripted()
        asked = _voices_asked_of(engines)
        async with connected(server_of(engines=engines, tts={"engine": "kokoro"})) as socket:
            await socket.until("session.created")
            voice = {"audio": {"output": {"voice": named}}}
            if where == "session":
                socket.send({"type": "session.update", "session": voice})
                shown = (await socket.until("session.updated"))["session"]
                assert shown["audio"]["output"]["voice"] == spoken_by
            socket.send(
                {
                    "type": "response.create",
                    "response": {"instructions": "Greet.", **(voice if where == "response" else {})},
                }
            )
            done = await socket.until("response.done")
        assert done["response"]["status"] == "completed"
        assert done["response"]["audio"]["output"]["voice"] == spoken_by
        assert set(asked) == {spoken_by}


def _voices_asked_of(engines: Engines) -> list[str]:
    asked: list[str] = []
    synthesize = engines.synthesizer.synthesize

    def noted(text: str, *, voice: str, speed: float) -> Any:
        asked.append(voice)
        return synthesize(text, voice=voice, speed=speed)

    engines.synthesizer.synthesize = noted  # type: ignore[method-assign]
    return asked


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shown",
    [
        {"headers": {"Authorization": f"Bearer {KEY}"}},
        {"headers": {"Authorization": f"bearer  {KEY} "}},
        {"headers": {"Authorization": "Bearer sk-other"}},
        {"subprotocols": ["realtime", f"openai-insecure-api-key.{KEY}"]},
        {"subprotocols": ["realtime", "openai-insecure-api-key.sk-other", "openai-beta.realtime-v1"]},
        {"headers": {"Authorization": "Bearer wrong"}, "subprotocols": [f"openai-insecure-api-key.{KEY}"]},
    ],
)
@virtual_time
async def test_a_right_key_opens(shown: dict[str, Any]):
    async with connected(server_of(api_keys=[KEY, "sk-other"]), **shown) as socket:
        await socket.until("session.created")


@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"headers": {"Authorization": "Bearer sk-wrong"}},
        {"headers": {"Authorization": "Bearer"}},
        {"headers": {"Authorization": "Bearer "}},
        {"headers": {"Authorization": KEY}},
        {"headers": {"Authorization": f"Basic {KEY}"}},
        {"headers": {"Authorization": f"Bearer {KEY}x"}},
        {"headers": {"Authorization": "Bearer sch\xfcssel"}},
        {"subprotocols": ["realtime"]},
        {"subprotocols": ["realtime", "openai-insecure-api-key."]},
        {"subprotocols": ["realtime", KEY]},
        {"query": f"api_key={KEY}"},
    ],
)
@virtual_time
async def test_without_a_right_key_nobody_is_served(shown: dict[str, Any]):
    server = server_of(api_keys=[KEY])
    async with connected(server, **shown) as socket:
        assert (await socket.until_closed())[0] == 1008
        assert refusal(socket) == "invalid_api_key"
        assert KEY not in str(socket.events)
    assert server.session_count == 0


@virtual_time
async def test_where_no_keys_are_set_none_is_asked_for_and_any_may_be_shown():
    async with connected(server_of(), headers={"Authorization": "Bearer anything"}) as socket:
        await socket.until("session.created")


# --- origins --------------------------------------------------------------------------------------------------------

NAMED = {"access": {"allowed_origins": ["https://app.test"]}}


@pytest.mark.parametrize(
    ("origin", "config", "is_served"),
    [
        (None, {}, True),
        ("http://voice.test:8000", {}, True),
        ("https://voice.test:8000", {}, True),
        ("http://voice.test", {}, False),
        ("http://voice.test:8001", {}, False),
        ("http://evil.test", {}, False),
        ("http://voice.test:8000.evil.test", {}, False),
        ("http://evil.test/voice.test:8000", {}, False),
        ("null", {}, False),
        ("", {}, False),
        ("http://[::1", {}, False),
        ("https://app.test", {}, False),
        ("https://app.test", NAMED, True),
        ("http://app.test", NAMED, False),
        ("https://app.test.evil.test", NAMED, False),
        ("http://evil.test", {"access": {"allowed_origins": ["*"]}}, True),
    ],
)
@virtual_time
async def test_pages_of_other_origins_may_not_connect(
    origin: str | None, config: dict[str, Any], is_served: bool
):
    headers = {} if origin is None else {"Origin": origin}
    async with connected(server_of(**config), headers=headers) as socket:
        if is_served:
            await socket.until("session.created")
        else:
            assert (await socket.until_closed())[0] == 1008
            assert refusal(socket) == "origin_not_allowed"


def test_an_origin_without_a_host_to_compare_it_to_is_refused():
    assert not is_origin_allowed("http://a.test", None, Access())


@virtual_time
async def test_a_right_key_does_not_open_for_a_wrong_origin():
    shown = {"Authorization": f"Bearer {KEY}", "Origin": "http://evil.test"}
    async with connected(server_of(api_keys=[KEY]), headers=shown) as socket:
        await socket.until_closed()
        assert refusal(socket) == "origin_not_allowed"


# --- admission ------------------------------------------------------------------------------------------------------


@virtual_time
async def test_a_full_server_says_so_and_lets_the_next_in_when_one_has_left():
    server = server_of(limits={"max_sessions_per_replica": 2})
    async with connected(server) as first:
        await first.until("session.created")
        async with connected(server) as second:
            await second.until("session.created")
            async with connected(server) as third:
                code, sentence = await third.until_closed()
                assert code == 1013
                assert "2 sessions" in sentence
                assert refusal(third) == "server_full"
            assert server.session_count == 2
        async with connected(server) as fourth:
            await fourth.until("session.created")
            assert (await first.spoken_turn())["status"] == "completed"
    assert server.session_count == 0


@virtual_time
async def test_of_many_refusals_the_log_tells_once_a_second_and_counts_all(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="voice_serve")
    server = server_of(api_keys=[KEY])

    async def knock() -> None:
        async with connected(server) as socket:
            await socket.until_closed()

    for _ in range(5):
        await knock()
    await asyncio.sleep(1.1)
    await knock()
    lines = [vars(record) for record in caplog.records if record.getMessage() == "caller refused"]
    assert [line["since_last_line"] for line in lines] == [{"invalid_api_key": 1}, {"invalid_api_key": 5}]
    assert lines[0]["error_code"] == "invalid_api_key"


@virtual_time
async def test_callers_who_are_refused_take_no_place():
    server = server_of(api_keys=[KEY], limits={"max_sessions_per_replica": 1})
    for _ in range(3):
        async with connected(server) as socket:
            await socket.until_closed()
    async with connected(server, headers={"Authorization": f"Bearer {KEY}"}) as socket:
        await socket.until("session.created")


@virtual_time
async def test_a_caller_who_leaves_while_being_refused_is_no_error():
    async with connected(server_of(api_keys=[KEY])) as socket:
        socket.hang_up()


# --- voices ---------------------------------------------------------------------------------------------------------


@virtual_time
async def test_only_voices_that_there_are_can_be_chosen():
    async with connected(server_of(voices=["af_heart", "bm_george"])) as socket:
        await socket.until("session.created")
        update = {
            "type": "session.update",
            "event_id": "v",
            "session": {"audio": {"output": {"voice": "nobody"}}},
        }
        socket.send(update)
        error = (await socket.until("error"))["error"]
        assert (error["code"], error["param"], error["event_id"]) == (
            "invalid_value",
            "session.audio.output.voice",
            "v",
        )


@pytest.mark.parametrize(
    "trouble",
    [
        TimeoutError(),
        OSError("no route"),
        EngineFailed("the replica was lost", stage="tts", engine="serve"),
    ],
)
@virtual_time
async def test_a_voice_that_cannot_say_its_names_keeps_nobody_out(trouble: Exception):
    async with connected(server_of(voices=trouble)) as socket:
        await socket.until("session.created")
        assert (await socket.spoken_turn())["status"] == "completed"


# --- ends -----------------------------------------------------------------------------------------------------------


@virtual_time
async def test_a_binary_frame_closes_with_1003_and_a_reason():
    async with connected(server_of()) as socket:
        await socket.until("session.created")
        socket.send(b"\x01\x02")
        code, reason = await socket.until_closed()
        assert code == 1003
        assert "binary frames" in reason


@virtual_time
async def test_a_limit_closes_with_1000_and_a_reason():
    async with connected(server_of(limits={"max_session_s": 5})) as socket:
        code, reason = await socket.until_closed()
        assert code == 1000
        assert "5 s" in reason


@virtual_time
async def test_our_own_mistake_closes_with_1011_and_says_nothing_of_it():
    class Broken:
        def probabilities(self, detectors: Any, frames: Any) -> list[float]:
            raise RuntimeError("secret")

    async with connected(server_of(engines=scripted(make_detector=Broken))) as socket:
        await socket.until("session.created")
        with pytest.raises(AssertionError, match="closed"):
            await socket.spoken_turn()
        assert socket.closed == (1011, "internal error")
        assert "secret" not in str(socket.events)


@virtual_time
async def test_a_reason_fits_into_a_close_frame():
    class Peer:
        scope: ClassVar[dict[str, Any]] = {}
        reason = ""

        async def close(self, code: int, reason: str) -> None:
            self.reason = reason

    peer: Any = Peer()
    await SocketTransport(peer).close(1000, "ü" * 100)
    assert peer.reason == "ü" * 61, "RFC 6455 5.5: 125 bytes with the code, and whole characters"


@virtual_time
async def test_a_close_that_the_peer_never_reads_is_not_waited_for():
    class Peer:
        scope: ClassVar[dict[str, Any]] = {}

        async def close(self, code: int, reason: str) -> None:
            await asyncio.sleep(3600)

    peer: Any = Peer()
    began = the_loop().time()
    await SocketTransport(peer).close(1000, "bye")
    assert the_loop().time() - began <= CLOSE_S


@pytest.mark.parametrize("path", ["/", "/v1/realtime/", "/v1/other", "/index.html"])
@virtual_time
async def test_a_socket_to_another_path_is_refused_without_a_fault(path: str):
    """Before the handshake is accepted, which servers answer with 403."""
    async with connected(server_of(), path=path) as socket:
        await socket.until_closed()
        assert socket.accepted is None
