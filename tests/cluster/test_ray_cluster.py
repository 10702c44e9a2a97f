"""cluster/ray-cluster.yaml: Ray's launcher takes it, its machines carry the Serve config, and callers reach one port."""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from serve_app import config

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster/ray-cluster.yaml"
TEXT = FILE.read_text()
Document = dict[str, Any]


def launcher() -> Document:
    parsed: Document = yaml.safe_load(TEXT)
    return parsed


def test_rays_own_schema_takes_it_as_it_is_and_with_its_defaults() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(launcher(), schema)
    validate_config(prepare_config(launcher()))
    misspelled = copy.deepcopy(launcher())
    misspelled["available_node_types"]["sessions"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(misspelled, schema)


def asked() -> dict[str, dict[str, float]]:
    document = config.read_document(ROOT / "cluster/serve.cluster.yaml")
    options = {d["name"]: d["ray_actor_options"] for d in document["applications"][0]["deployments"]}
    return {
        name: {"CPU": o["num_cpus"], "GPU": o.get("num_gpus", 0), **o["resources"]}
        for name, o in options.items()
    }


def test_sessions_land_on_machines_without_a_gpu_and_engines_on_machines_with_one() -> None:
    homes = {}
    for name, need in asked().items():
        homes[name] = [
            kind
            for kind, node in launcher()["available_node_types"].items()
            if all(node["resources"].get(resource, 0) >= amount for resource, amount in need.items())
        ]
    assert homes == {
        "Ingress": ["sessions"],
        "SpeechToText": ["engines"],
        "LanguageModel": ["engines"],
        "TextToSpeech": ["engines"],
    }


def test_the_smallest_cluster_carries_one_replica_of_each_and_more_are_ordered_within_bounds() -> None:
    nodes = launcher()["available_node_types"]
    engines = nodes["engines"]
    assert engines["min_workers"] >= sum(need["GPU"] for need in asked().values())
    assert sum(node.get("max_workers", 0) for node in nodes.values()) <= launcher()["max_workers"]


def test_callers_reach_the_head_alone_and_ray_makes_no_security_group_of_its_own() -> None:
    groups = {
        kind: n["node_config"]["SecurityGroupIds"] for kind, n in launcher()["available_node_types"].items()
    }
    assert groups == {
        "head": ["sg-VOICE-CLUSTER", "sg-VOICE-FRONT"],
        "sessions": ["sg-VOICE-CLUSTER"],
        "engines": ["sg-VOICE-CLUSTER"],
    }
    assert "security_group" not in launcher()["provider"]
    opened = re.findall(r"--group-name voice-front.*--port (\d+)", TEXT)
    assert opened == ["8000"]
    assert "--group-name voice-cluster --protocol all --source-group voice-cluster" in TEXT


def started() -> list[str]:
    return [launcher()["head_start_ray_commands"][-1], launcher()["worker_start_ray_commands"][-1]]


def test_ray_knows_every_option_of_its_start_commands() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    for command in started():
        used = [word.partition("=")[0] for word in shlex.split(command) if word.startswith("--")]
        assert used
        assert set(used) <= known


def test_the_dashboard_is_for_those_who_come_through_ssh() -> None:
    assert "--dashboard-host=127.0.0.1" in started()[0]


def test_workers_stay_clear_of_the_replicas_listeners() -> None:
    for command in started():
        highest = re.search(r"--max-worker-port=(\d+)", command)
        assert highest
        assert int(highest[1]) < 30000


def test_every_machine_has_the_same_ray() -> None:
    pins = [
        re.findall(r"^ray==(.+)$", (ROOT / name).read_text(), re.MULTILINE)
        for name in ("constraints.txt", "constraints-gpu.txt")
    ]
    assert pins[0] == pins[1] != []
    commands = [*launcher()["head_setup_commands"], *launcher()["worker_setup_commands"]]
    commands += launcher()["available_node_types"]["engines"]["worker_setup_commands"]
    installing = [command for command in commands if "pip install" in command]
    assert len(installing) == 3
    assert all("-c ~/voice-serve/constraints" in command for command in installing)
