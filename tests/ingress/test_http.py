"""What the ingress serves over HTTP: health, readiness, the list of models, the page and its headers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from ingress.asgi import INFOS, server_of

from deployments.interfaces import EngineFailed, EngineInfo
from serve_app.server import VoiceServer
from serve_app.web import routes

FALLBACK = EngineInfo(
    "tts",
    "espeak",
    "espeak-ng",
    reason="kokoro is not here",
    remedy="voice-serve models pull",
    details={"loaded": ""},
)


@asynccontextmanager
async def client_of(server: VoiceServer) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=routes(server))
    async with httpx.AsyncClient(transport=transport, base_url="http://voice.test") as client:
        yield client


async def get(server: VoiceServer, path: str, **headers: str) -> httpx.Response:
    async with client_of(server) as client:
        return await client.get(path, headers=headers)


async def test_healthz_says_that_this_replica_lives():
    response = await get(server_of(), "/healthz")
    assert response.status_code == 200
    assert response.json().items() >= {"ok": True, "sessions": 0}.items()


async def test_readyz_when_every_stage_can_serve():
    response = await get(server_of(), "/readyz")
    assert (response.status_code, response.json()) == (200, {"ready": True, "stages": {}})


async def test_readyz_names_the_stages_that_cannot_serve():
    broken = INFOS | {"llm": "no replica has answered within 5 s"}
    response = await get(server_of(health=broken), "/readyz")
    assert response.status_code == 503
    assert response.json() == {"ready": False, "stages": {"llm": "no replica has answered within 5 s"}}


async def test_health_needs_no_key():
    for path in ("/healthz", "/readyz"):
        assert (await get(server_of(api_keys=["k"]), path)).status_code == 200


async def test_models_lists_one_model_with_its_stages_voices_and_limits():
    response = await get(server_of(voices=["b", "a"]), "/v1/models")
    assert response.status_code == 200
    (model,) = response.json()["data"]
    assert response.json()["object"] == "list"
    assert model["object"] == "model"
    assert isinstance(model["created"], int)
    assert [stage["stage"] for stage in model["stages"]] == ["vad", "stt", "llm", "tts"]
    assert model["voices"] == ["a", "af_heart", "b"], "the configured voice is one of them"
    assert model["limits"]["max_sessions_per_replica"] == 8


async def test_models_says_what_stands_in_why_and_what_to_do():
    response = await get(server_of(health=INFOS | {"tts": FALLBACK}), "/v1/models")
    stages = {stage["stage"]: stage for stage in response.json()["data"][0]["stages"]}
    assert stages["tts"] == {
        "stage": "tts",
        "engine": "espeak",
        "model": "espeak-ng",
        "reason": "kokoro is not here",
        "remedy": "voice-serve models pull",
        "details": {"loaded": ""},
    }
    assert stages["stt"]["remedy"] == ""


async def test_models_shows_a_broken_stage():
    response = await get(server_of(health=INFOS | {"stt": "it is starting"}), "/v1/models")
    stages = {stage["stage"]: stage for stage in response.json()["data"][0]["stages"]}
    assert stages["stt"] == {"stage": "stt", "error": "it is starting"}


@pytest.mark.parametrize(
    "trouble", [TimeoutError(), EngineFailed("the replica was lost", stage="tts", engine="serve")]
)
async def test_models_without_the_voices_that_nobody_can_name_yet(trouble: Exception):
    response = await get(server_of(voices=trouble), "/v1/models")
    assert response.status_code == 200
    assert response.json()["data"][0]["voices"] == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "Bearer k"}, 200)],
)
async def test_models_asks_for_a_key_where_keys_are_set(headers: dict[str, str], status: int):
    response = await get(server_of(api_keys=["k"]), "/v1/models", **headers)
    assert response.status_code == status
    if status == 401:
        assert "Bearer" in response.json()["error"]["message"]


async def test_the_voices_are_asked_for_until_they_are_known_and_then_no_more():
    asked = 0
    answers: list[Any] = [TimeoutError(), ["a"], ["b"]]
    server = server_of()

    async def names() -> Any:
        nonlocal asked
        asked += 1
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    server._list_voices = names
    found = [await server.voices() for _ in range(3)]
    assert found == [None, {"a", "af_heart"}, {"a", "af_heart"}]
    assert asked == 2


@pytest.mark.parametrize(
    "path", ["/", "/static/app.js", "/static/style.css", "/healthz", "/v1/models", "/nothing-here"]
)
async def test_every_answer_has_its_headers(path: str):
    """The page may load nothing from elsewhere, and no old module stays in a browser after an upgrade."""
    response = await get(server_of(), path)
    policy = response.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"


async def test_the_page_and_its_parts_are_served():
    page = await get(server_of(), "/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "<button" in page.text
    script = await get(server_of(), "/static/app.js")
    assert "javascript" in script.headers["content-type"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../config.py",
        "/static/%2e%2e/config.py",
        "/static/..%2fconfig.py",
        "/config.py",
        "/nothing-here",
    ],
)
async def test_nothing_else_is_served(path: str):
    response = await get(server_of(), path)
    assert response.status_code == 404
    assert "VOICE_SERVE" not in response.text


async def test_no_schema_is_offered_that_nobody_wrote():
    for path in ("/docs", "/redoc"):
        assert (await get(server_of(), path)).status_code == 404
