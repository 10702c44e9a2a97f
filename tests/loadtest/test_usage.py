"""Which process is what, and what the samples of it say."""

import os
import subprocess
import sys

import psutil
import pytest

from loadtest import usage
from loadtest.application import ROOT
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
    assert taken.files["callers"] >= 3, "its input and outputs at least"


def test_the_cost_of_one_role_is_the_sum_of_its_processes_and_one_that_has_ended_is_gone():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        child = psutil.Process(process.pid)
        both = [(child, "stt"), (psutil.Process(), "stt")]
        assert usage.sample(both).processes == {"stt": 2}
        assert usage.sample(both).rss_mb["stt"] > usage.sample(both[1:]).rss_mb["stt"]
        process.kill()
    assert usage.sample(both).processes == {"stt": 1}


THREADED = """
import loadtest.usage, os, threading
over = threading.Event()
threading.Thread(target=over.wait).start()
print(flush=True)
input()
over.set()
"""


def test_pinned_processes_have_their_cores_alone_with_all_their_threads():
    every = os.sched_getaffinity(0)
    if len(every) < 2:
        pytest.skip("needs two cores")
    last = {max(every)}
    pinning = f"""
import os, subprocess, sys
from loadtest import usage
run = lambda mark: subprocess.Popen([sys.executable, "-c", {THREADED!r}, mark], stdin=-1, stdout=-1)
ours, other = run("ServeReplica:voice:Ingress"), run("ray::IDLE")
for child in (ours, other):
    child.stdout.readline()
usage.pin(os.getpid(), usage.SESSION_TIER, {last})
usage.pin(os.getpid(), usage.SESSION_TIER, {last})
for pid in (ours.pid, other.pid, os.getpid()):
    found = [os.sched_getaffinity(int(thread)) for thread in os.listdir(f"/proc/{{pid}}/task")]
    print(len(found), *found[0] if all(cores == found[0] for cores in found) else ("differ", found), sep=",")
for child in (ours, other):
    child.communicate(b"\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", pinning], capture_output=True, text=True, check=True, cwd=ROOT
    )
    ingress, other, itself = ([int(part) for part in line.split(",")] for line in done.stdout.split() if line)
    assert min(ingress[0], other[0]) >= 2, "threads"
    assert set(ingress[1:]) == last
    assert set(other[1:]) == every - last
    assert set(itself[1:]) == every - last


def test_cores_are_cpu_seconds_a_second_between_the_first_sample_and_the_last():
    samples = [Sample(10.0, {"ingress": 5.0}), Sample(11.0, {"ingress": 5.1}), Sample(14.0, {"ingress": 6.0})]
    assert cores(samples) == {"ingress": 0.25}


def test_a_role_that_lost_a_process_has_no_figure():
    assert cores([Sample(0.0, {"ingress": 5.0, "stt": 1.0}), Sample(2.0, {"ingress": 1.0, "stt": 2.0})]) == {
        "stt": 0.5
    }
    assert cores([Sample(0.0, {"ingress": 5.0})]) == {}
