"""A cluster of several nodes on this machine, with the shipped cluster config on scripted engines.

The nodes offer what the groups of cluster/rayservice.yaml offer (GPUs that are not there included), and the deployments
ask for what cluster/serve.cluster.yaml asks for; only the engines, the number of replicas and the address differ.
"""

import logging
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ray
import yaml
from ray import serve
from ray._private.state import actors
from ray.cluster_utils import Cluster

from loadtest.application import APPLICATION, ROOT, Application, end_haproxy, free_port, serve_run, tail

CONFIG = ROOT / "cluster/serve.cluster.yaml"
SCRIPTED_ARGS: dict[str, dict[str, Any]] = {
    "stt": {"engine": "scripted", "scripted": {"latency_s": 3.0}},
    "llm": {"engine": "scripted", "scripted": {"first_token_s": 0.1, "answer_words": 8}},
    "tts": {"engine": "scripted", "scripted": {"first_audio_s": 0.1, "word_s": 0.2}},
    "turn_taking": {"drafts_per_turn": 0},
    "timeouts": {"stt_s": 30},
    "access": {"auth": "none"},
}
"""A slow transcription: it is under way when a node is killed."""
HOMES = {"Ingress": "ingress", "SpeechToText": "stt", "LanguageModel": "llm", "TextToSpeech": "tts"}
INGRESS_NODE = {"num_cpus": 2, "resources": {"ingress": 1}}
ENGINE_NODE = {"num_cpus": 4, "num_gpus": 2, "resources": {"stt": 1, "llm": 1, "tts": 1}}
OWN_PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)
"""Not the usual ones, which an application of the test before may not have let go of yet."""
START_S = 180


def shipped_config(port: int) -> dict[str, Any]:
    """cluster/serve.cluster.yaml on scripted engines, two replicas a stage, each on a node of its own."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    config["controller_options"]["runtime_env"]["env_vars"] |= {name: str(free_port()) for name in OWN_PORTS}
    config |= {"http_options": {"host": "127.0.0.1", "port": port}, "proxy_location": "HeadOnly"}
    [application] = config["applications"]
    application["args"] = SCRIPTED_ARGS
    for deployment in application["deployments"]:
        del deployment["autoscaling_config"]
        deployment |= {"num_replicas": 2, "max_replicas_per_node": 1}
    return config


@dataclass
class Nodes:
    cluster: Cluster
    application: Application
    kinds: dict[str, str]
    """Of each node, by its id: "head", "ingress 0", "engines 1", ..."""

    def where(self) -> dict[str, set[str]]:
        """The nodes on which each deployment has replicas."""
        found: dict[str, set[str]] = {name: set() for name in HOMES}
        for actor in actors().values():
            application, _, name = actor["Name"].removeprefix("SERVE_REPLICA::").partition("#")
            deployment = name.partition("#")[0]
            if actor["State"] == "ALIVE" and application == APPLICATION and deployment in found:
                found[deployment].add(self.kinds[actor["Address"]["NodeID"]])
        return found

    def kill(self, kind: str) -> None:
        """Ends a node without a word: its raylet is killed, and its workers die with it."""
        [node] = [n for n in self.cluster.worker_nodes if self.kinds[n.node_id] == kind]
        self.cluster.remove_node(node, allow_graceful=False)


@contextmanager
def nodes(folder: Path) -> Iterator[Nodes]:
    """Head, two nodes for sessions, two for engines; the application on them, ready."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    try:
        kinds = {cluster.head_node.node_id: "head"}
        for index in (0, 1):
            kinds[cluster.add_node(**INGRESS_NODE).node_id] = f"ingress {index}"
            kinds[cluster.add_node(**ENGINE_NODE).node_id] = f"engines {index}"
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        port = free_port()
        config, log = folder / "config.yaml", folder / "serve.log"
        config.write_text(yaml.safe_dump(shipped_config(port)))
        began = time.monotonic()
        with log.open("wb") as out, serve_run(config, cluster.address, out) as process:
            application = Application(port, log, 0.0, config, cluster.address)
            _until_complete(application, process, began + START_S)
            yield Nodes(cluster, application, kinds)
    finally:
        ray.shutdown()
        head = cluster.head_node.node_id
        cluster.shutdown()
        end_haproxy(head)


def _until_complete(application: Application, process: "subprocess.Popen[bytes]", deadline: float) -> None:
    """Ready, and with both replicas of every stage."""
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ready = httpx.get(f"{application.http}/readyz", timeout=10).status_code == 200
        except httpx.HTTPError:
            ready = False
        if ready:
            deployments = serve.status().applications[APPLICATION].deployments.values()
            if all(dict(d.replica_states).get("RUNNING") == 2 for d in deployments):
                return
        time.sleep(0.3)
    raise TimeoutError(f"the application is not complete:\n{tail(application.log)}")
