"""HAProxy mode with one event loop a replica, as on a cluster: interruptions and departures reach the engines there too."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from cluster.expressions import NOT_ALWAYS, selectors
from prometheus_client.parser import text_string_to_metric_families

from loadtest.application import Application, application
from loadtest.caller import caller
from serve_app.talk import load_recording

from .conftest import SLOW_VOICE

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(sys.platform != "linux", reason="HAProxy mode of Ray Serve is for Linux only"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TRACED = {
    "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "ray.serve._private.tracing_utils:default_tracing_exporter",
    "RAY_SERVE_TRACING_SAMPLING_RATIO": "1",
}
"""What `tracing_config: {enabled: true, sampling_ratio: 1}` says, for the application alone."""


@pytest.fixture(scope="module")
def behind_haproxy() -> Iterator[Application]:
    with application(args=SLOW_VOICE, proxy="haproxy", env=TRACED) as running:
        yield running


async def test_a_barge_in_and_a_hang_up_stop_the_engines(
    behind_haproxy: Application, shared_audio: Path
) -> None:
    app = behind_haproxy
    question = load_recording(shared_audio / "speech" / "p287_001.flac")
    async with caller(app.realtime) as one:
        one.say(question)
        await one.until_type("response.output_audio.delta")
        await asyncio.sleep(1)
        after = len(one.arrivals)
        one.say(question)
        await one.until_type("input_audio_buffer.speech_started", after=after)
        done = await one.until_type("response.done", after=after)
        assert done.event["response"]["status_details"]["reason"] == "turn_detected"
        assert [(await app.until_idle(name))["cancelled"] for name in ("LanguageModel", "TextToSpeech")] == [
            1,
            1,
        ]
        assert not any(chunk.is_stale for chunk in one.player.arrivals)
        await one.until_type("response.output_audio.delta", after=len(one.arrivals))
    counts = [await app.until_idle(name, within_s=10) for name in ("LanguageModel", "TextToSpeech")]
    assert [count["cancelled"] for count in counts] == [2, 2]
    async with httpx.AsyncClient(base_url=app.http) as http, asyncio.timeout(10):
        while (await http.get("/healthz")).json()["sessions"]:
            await asyncio.sleep(0.05)


def statistics_ports(app: Application) -> tuple[int, int]:
    """Of HAProxy: (metrics, the page), as its config sets them; 9101 and 8404 unless told."""
    environment = yaml.safe_load(app.config.read_text())["controller_options"]["runtime_env"]["env_vars"]
    return int(environment["RAY_SERVE_HAPROXY_METRICS_PORT"]), int(
        environment["RAY_SERVE_HAPROXY_STATS_PORT"]
    )


async def scraped(behind: set[str], *addresses: str) -> dict[str, set[str]]:
    """Every metric at these addresses with all labels of its samples, once those in `behind` are there."""
    found: dict[str, set[str]] = {}
    async with httpx.AsyncClient(timeout=10) as http, asyncio.timeout(60):
        while not behind <= found.keys():
            for address in addresses:
                for one in text_string_to_metric_families((await http.get(address)).text):
                    for sample in one.samples:
                        found.setdefault(sample.name, set()).update(sample.labels)
            await asyncio.sleep(1)
    return found


async def test_the_rules_and_the_dashboard_ask_for_what_there_is(behind_haproxy: Application) -> None:
    """After the turns of the test before. Ray renews its numbers every ten seconds."""
    asked = {metric: labels for metric, labels in selectors().items() if metric not in NOT_ALWAYS}
    [node] = ray.nodes()
    export = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    metrics, _ = statistics_ports(behind_haproxy)
    shown = await scraped(set(asked), export, f"http://127.0.0.1:{metrics}/metrics")
    for metric, labels in asked.items():
        assert labels <= shown[metric], metric


def test_a_turn_can_be_followed_through_the_logs(behind_haproxy: Application) -> None:
    """JSON, with the ids of session, response and request: the same in the line of a turn and of its session's end."""
    lines = [
        json.loads(line)
        for path in session_logs().glob("replica_voice_Ingress_*.log")
        for line in path.read_text().splitlines()
    ]
    turns = [line for line in lines if line["message"] == "turn"]
    assert turns
    for turn in turns:
        assert turn["response"].split("_")[1] == turn["session"]
        [end] = [x for x in lines if x["message"] == "session ended" and x["session"] == turn["session"]]
        assert turn["request_id"] == end["request_id"] != ""
        assert turn["replica"] == end["replica"] != ""


def spans() -> list[dict[str, Any]]:
    """Of the ingress replicas, from Serve's own exporter: JSON objects one after another."""
    found, decoder = [], json.JSONDecoder()
    for path in (session_logs() / "spans").glob("*Ingress*"):
        text = path.read_text().strip()
        while text:
            span, end = decoder.raw_decode(text)
            found.append(span)
            text = text[end:].strip()
    return found


async def test_a_turn_is_a_span_of_its_session_with_its_stages_inside(behind_haproxy: Application) -> None:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        while "turn" not in [span["name"] for span in found]:
            await asyncio.sleep(0.2)
            found = spans()
    turn = next(span for span in found if span["name"] == "turn")
    inside = [span["name"] for span in found if span["parent_id"] == turn["context"]["span_id"]]
    assert {"endpointing", "llm_ttft", "tts_ttfb"} <= set(inside)
    same_trace = {
        span["name"] for span in found if span["context"]["trace_id"] == turn["context"]["trace_id"]
    }
    assert len(same_trace - {"turn", *inside}) >= 1, "Serve's own spans of the session"


def session_logs() -> Path:
    return Path(ray._private.worker.global_worker.node.get_logs_dir_path()) / "serve"


def listeners() -> dict[int, set[str]]:
    """The addresses, in the kernel's notation, on which something listens at each port of this machine."""
    found: dict[int, set[str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            local, state = row.split()[1], row.split()[3]
            address, port = local.split(":")
            if state == "0A":
                found.setdefault(int(port, 16), set()).add(address)
    return found


def test_callers_of_other_machines_reach_nothing_of_serve_but_haproxys_statistics(
    behind_haproxy: Application,
) -> None:
    """http_options.host binds HAProxy, Serve's own proxy and the replicas; no option binds the two statistics ports.

    If this fails for the two, Ray has learnt to bind them: say so in the configs, and set it.
    """
    loopback = {"0100007F"}
    here = listeners()
    replicas = [addresses for port, addresses in here.items() if 30_000 <= port < 31_000]
    assert replicas
    assert all(addresses == loopback for addresses in [here[behind_haproxy.port], here[8500], *replicas])
    assert [here[port] for port in statistics_ports(behind_haproxy)] == [{"00000000"}] * 2
