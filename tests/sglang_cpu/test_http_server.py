"""`openai_compatible` against SGLang's own HTTP server."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import httpx
import pytest
from engines.support import collected

from deployments.engines import create
from deployments.engines.openai_compatible import OpenAICompatibleChatModel
from deployments.interfaces import BadRequest, ChatMessage, Sampling
from deployments.options import LlmOptions
from loadtest.bench_models import SGLANG_ON_CPU

pytestmark = pytest.mark.timeout(900)
QUESTION = [ChatMessage("user", "w4 w5")]


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
        for name, value in SGLANG_ON_CPU.items()
    ]
    command = [
        sys.executable,
        "-m",
        "sglang.launch_server",
        f"--model-path={tiny_model}",
        f"--port={port}",
        *flags,
    ]
    # By default /v1/loads tells what was true up to 15 tokens ago.
    process = subprocess.Popen([*command, "--log-level=warning", "--load-snapshot-publish-interval=1"])
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_it_answers(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_it_answers(url: str, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert process.poll() is None, "the server has ended"
        try:
            if httpx.get(f"{url}/health_generate", trust_env=False, timeout=30).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    pytest.fail("no answer within 300 s")


def engine_at(server: str) -> OpenAICompatibleChatModel:
    engine: OpenAICompatibleChatModel = create(
        LlmOptions(engine="openai_compatible", base_url=f"{server}/v1", model="tiny")
    )
    return engine


async def running(server: str) -> int:
    """How many generations the server says it has."""
    async with httpx.AsyncClient(trust_env=False) as client:
        loads = (await client.get(f"{server}/v1/loads")).json()["loads"]
    return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)


async def test_an_answer_comes_in_pieces_with_reason_and_usage(server: str) -> None:
    engine = engine_at(server)
    deltas = await collected(engine.generate(QUESTION, sampling=Sampling(max_tokens=20, temperature=0.0)))
    await engine.aclose()
    assert len(deltas) > 10
    assert deltas[-1].finish_reason == "length"
    assert deltas[-1].usage
    assert deltas[-1].usage.output_tokens == 20


async def test_a_context_that_is_too_long_is_a_bad_request(server: str) -> None:
    engine = engine_at(server)
    with pytest.raises(BadRequest, match="context length"):
        await collected(engine.generate([ChatMessage("user", "w1 " * 600)], sampling=Sampling()))
    await engine.aclose()


async def test_leaving_a_stream_ends_the_generation_at_the_server(server: str) -> None:
    engine = engine_at(server)
    async with aclosing(
        engine.generate(QUESTION, sampling=Sampling(max_tokens=480, temperature=0.0))
    ) as stream:
        for _ in range(5):
            await anext(stream)
        assert await running(server) == 1
    started = time.monotonic()
    async with asyncio.timeout(30):
        while await running(server):
            await asyncio.sleep(0.005)
    freed_ms = (time.monotonic() - started) * 1000
    started = time.monotonic()
    await collected(engine.generate(QUESTION, sampling=Sampling(max_tokens=480, temperature=0.0)))
    whole_ms = (time.monotonic() - started) * 1000
    await engine.aclose()
    print(f"\nsglang HTTP: hang-up to free {freed_ms:.0f} ms; the whole answer takes {whole_ms:.0f} ms")
    assert freed_ms < whole_ms / 2
