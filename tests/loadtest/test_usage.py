"""Which process is what, and what the samples of it say."""

import os
import subprocess
import sys

import pytest

from loadtest import usage
from loadtest.figures import cores
from loadtest.usage import Sample


@pytest.mark.parametrize(
    ("name", "command", "role"),
    [
        ("ray::ServeReplica", "ray::ServeReplica:voice:Ingress", "ingress"),
        ("ray::ServeReplica", "ray::ServeReplica:voice:SpeechToText.transcribe", "stt"),
        ("ray::ServeReplica", "ray::ServeReplica:voice:LanguageModel", "llm"),
        ("ray::ServeReplica", "ray::ServeReplica:voice:TextToSpeech", "tts"),
        ("ray::ServeContr", "ray::ServeController", "controller"),
        ("ray::HAProxyMan", "ray::HAProxyManager", "proxy manager"),
        ("ray::ProxyActor", "ray::ProxyActor", "proxy"),
        ("haproxy", "/somewhere/haproxy -db -f haproxy.cfg", "haproxy"),
        ("python", "python -m loadtest.crowd ws://127.0.0.1:8000/v1/realtime", "callers"),
        ("python", "python -m locust -f loadtest/locustfile.py --headless", "locust"),
        ("gcs_server", "/ray/core/src/ray/gcs/gcs_server --redis", "gcs"),
        ("raylet", "/ray/core/src/ray/raylet/raylet --raylet_socket", "raylet"),
        ("ray::IDLE", "ray::IDLE", "ray, the rest"),
    ],
)
def test_a_process_is_known_by_its_title(name: str, command: str, role: str):
    assert usage.role_of(name, command) == role


def test_the_cost_of_a_process_below_this_one_is_sampled():
    busy = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\nprint('done', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", busy, "loadtest.crowd"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"done\n"
        taken = usage.sample(usage.below(os.getpid()))
        process.stdin.close()
    assert taken.cpu_s["callers"] >= 0.3
    assert taken.rss_mb["callers"] > 1
    assert taken.processes["callers"] == 1


def test_cores_are_cpu_seconds_a_second_between_the_first_sample_and_the_last():
    samples = [Sample(10.0, {"ingress": 5.0}), Sample(11.0, {"ingress": 5.1}), Sample(14.0, {"ingress": 6.0})]
    assert cores(samples) == {"ingress": 0.25}


def test_a_role_that_lost_a_process_has_no_figure():
    assert cores([Sample(0.0, {"ingress": 5.0, "stt": 1.0}), Sample(2.0, {"ingress": 1.0, "stt": 2.0})]) == {
        "stt": 0.5
    }
    assert cores([Sample(0.0, {"ingress": 5.0})]) == {}
