"""Every refusal and every failure, in OpenAI's words and with the right status."""

import json
from typing import Any

import pytest
from ingress.asgi import server_of
from rest.wire import asked, file_of, http_of, speech, until_idle
from session.calls import scripted

from deployments.interfaces import BadRequest, EngineBusy, EngineFailed
from deployments.options import ScriptedLlm, ScriptedStt, ScriptedTts

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
HANGING = {
    "stt": ScriptedStt(latency_s=60),
    "llm": ScriptedLlm(first_token_s=60),
    "tts": ScriptedTts(first_audio_s=60),
}
ALL = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/voice-serve"),
    ("GET", "/v1/audio/voices"),
    ("POST", "/v1/audio/speech"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1/chat/completions"),
]


def assert_openai_error(response: Any, status: int, code: str | None) -> None:
    assert response.status_code == status
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"] == code
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")


class Raising:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def transcribe(self, *_: Any, **__: Any) -> Any:
        raise self.error

    async def generate(self, *_: Any, **__: Any) -> Any:
        raise self.error
        yield

    synthesize = generate


async def answers(engines: Any, **config: Any) -> list[Any]:
    """Of all three stages, whole and streamed."""
    file = {"file": ("a.wav", file_of(speech(1)))}
    async with http_of(server_of(engines=engines, **config)) as http:
        return [
            await http.post("/v1/chat/completions", json=CHAT),
            await http.post("/v1/chat/completions", json={**CHAT, "stream": True}),
            await http.post("/v1/audio/speech", json={"input": "Hello."}),
            await http.post("/v1/audio/speech", json={"input": "Hello.", "stream_format": "sse"}),
            await http.post("/v1/audio/transcriptions", files=file),
            await http.post("/v1/audio/transcriptions", files=file, data={"stream": "true"}),
        ]


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (BadRequest, 400, "engine_bad_request"),
        (EngineBusy, 503, "engine_busy"),
        (EngineFailed, 502, "engine_failed"),
    ],
)
async def test_an_engines_error(kind: Any, status: int, code: str):
    engine = Raising(kind("it says why", stage="llm", engine="raising"))
    engines = scripted(chat=engine, synthesizer=engine, transcriber=engine)
    for response in await answers(engines):
        assert_openai_error(response, status, code)
        assert "it says why" in response.json()["error"]["message"]
        assert response.headers.get("retry-after") == ("1" if status == 503 else None)


async def test_an_engine_that_hangs_is_given_its_time_and_no_more():
    engines = scripted(**HANGING)
    limits = {"stt_s": 0.05, "llm_first_token_s": 0.05, "tts_first_audio_s": 0.05}
    for response in await answers(engines, timeouts=limits):
        assert_openai_error(response, 504, "engine_failed")
        assert "within" in response.json()["error"]["message"]
    assert [e.active for e in (engines.chat, engines.synthesizer, engines.transcriber)] == [0, 0, 0]


async def test_our_own_mistake_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture):
    engine = Raising(ZeroDivisionError("secret"))
    for response in await answers(scripted(chat=engine, synthesizer=engine, transcriber=engine)):
        assert_openai_error(response, 500, "internal_error")
        assert "secret" not in response.text
    assert caplog.text.count("ZeroDivisionError: secret") == 6


@pytest.mark.parametrize(("method", "path"), ALL)
async def test_without_the_key_nothing_is_told(method: str, path: str):
    async with http_of(server_of(api_keys=["right"])) as http:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right"}):
            response = await http.request(method, path, headers=headers)
            assert_openai_error(response, 401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        allowed = await http.request(method, path, headers={"Authorization": "Bearer right"})
        assert allowed.status_code != 401


@pytest.mark.parametrize(("method", "path"), ALL)
async def test_a_page_of_another_origin_may_not_ask(method: str, path: str):
    """A browser sends forms across origins without asking the server first."""
    async with http_of(server_of()) as http:
        response = await http.request(method, path, headers={"Origin": "http://elsewhere.test"})
        assert_openai_error(response, 403, "origin_not_allowed")
        own = await http.request(method, path, headers={"Origin": "http://voice.test"})
        assert own.status_code != 403


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"messages": "\xff"}', "invalid_json"),
        (b'{"messages": "\\ud800"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (b"{}", "missing_required_parameter"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/audio/speech"])
async def test_a_body_that_is_no_json_object(path: str, body: bytes, code: str):
    async with http_of(server_of()) as http:
        response = await http.post(path, content=body, headers={"content-type": "application/json"})
    assert_openai_error(response, 400, code)


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/v1/chat/completions", "text/plain"),
        ("/v1/audio/speech", "application/x-www-form-urlencoded"),
        ("/v1/audio/speech", None),
        ("/v1/audio/transcriptions", "application/json"),
        ("/v1/audio/transcriptions", None),
    ],
)
async def test_another_content_type(path: str, content_type: str | None):
    headers = {"content-type": content_type} if content_type else {}
    async with http_of(server_of()) as http:
        response = await http.post(path, content=json.dumps(CHAT), headers=headers)
    assert_openai_error(response, 415, "unsupported_content_type")


@pytest.mark.parametrize(
    "body",
    [
        b"no form at all",
        b"--x\r\nno header\r\n\r\nvalue\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + b"a" * 70_000 + b"\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="p"\r\n\r\na\r\n' * 60 + b"--x--\r\n",
    ],
    ids=["text", "header", "long field", "many fields"],
)
async def test_a_broken_form(body: bytes):
    async with http_of(server_of()) as http:
        for boundary in ("; boundary=x", ""):
            headers = {"content-type": f"multipart/form-data{boundary}"}
            response = await http.post("/v1/audio/transcriptions", content=body, headers=headers)
            assert response.status_code == 400
            assert response.json()["error"]["type"] == "invalid_request_error"


async def test_a_body_that_is_too_large():
    large = {"input": "x" * 2_000_000}
    async with http_of(server_of()) as http:
        assert_openai_error(await http.post("/v1/audio/speech", json=large), 413, "request_too_large")

        async def parts() -> Any:
            for _ in range(20):
                yield b" " * 100_000

        headers = {"content-type": "application/json"}
        unannounced = await http.post("/v1/audio/speech", content=parts(), headers=headers)
        assert_openai_error(unannounced, 413, "request_too_large")


async def test_a_client_that_leaves_before_its_body_is_there():
    server = server_of()
    async with asked(server, "/v1/chat/completions", b"{") as (exchange, _):
        exchange.messages.get_nowait()
        exchange.messages.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
        exchange.hang_up()
    assert exchange.status == 499


async def test_an_unknown_path_and_a_wrong_method():
    async with http_of(server_of()) as http:
        assert_openai_error(await http.get("/v1/embeddings"), 404, "unknown_url")
        assert_openai_error(await http.get("/v1/chat/completions"), 405, "method_not_allowed")


async def test_rest_is_no_session():
    """A server full of callers still answers, and its requests are not counted as callers."""
    engines = scripted(llm=ScriptedLlm(first_token_s=0.2))
    server = server_of(engines=engines, limits={"max_sessions_per_replica": 1})
    body = json.dumps(CHAT).encode()
    async with (
        asked(server, "/v1/chat/completions", body) as (one, _),
        asked(server, "/v1/chat/completions", body) as (two, _),
    ):
        assert server.session_count == 0
        await one.until(lambda: one.is_whole and two.is_whole)
    assert (one.status, two.status) == (200, 200)
    await until_idle(server)
