"""cluster/rayservice.yaml: Kubernetes and KubeRay take it, its groups carry the Serve config, and it is closed to others."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from serve_app import config

from .kuberay_schema import RAY_SERVICE, as_pod

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="kubernetes-validate is not installed"
)

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster/rayservice.yaml"
KUBERNETES = "1.32"

Document = dict[str, Any]


def documents() -> list[Document]:
    return list(yaml.safe_load_all(FILE.read_text()))


def named(kind: str, name: str) -> Document:
    [found] = [d for d in documents() if d["kind"] == kind and d["metadata"]["name"] == name]
    return found


def cluster() -> Document:
    spec: Document = named("RayService", "voice")["spec"]["rayClusterConfig"]
    return spec


def groups() -> dict[str, Document]:
    return {group["groupName"]: group for group in cluster()["workerGroupSpecs"]}


def serve_config() -> Document:
    parsed: Document = yaml.safe_load(named("RayService", "voice")["spec"]["serveConfigV2"])
    return parsed


def templates() -> list[Document]:
    return [cluster()["headGroupSpec"]["template"], *(group["template"] for group in groups().values())]


# --- schemas --------------------------------------------------------------------------------------------------------


def test_kuberay_knows_every_key() -> None:
    jsonschema.validate(named("RayService", "voice"), RAY_SERVICE)
    misspelled = copy.deepcopy(named("RayService", "voice"))
    misspelled["spec"]["rayClusterConfig"]["gcsFaultTolerance"] = {}
    with pytest.raises(jsonschema.ValidationError, match="gcsFaultTolerance"):
        jsonschema.validate(misspelled, RAY_SERVICE)


@pytest.mark.parametrize("index", range(1, len(documents())))
def test_kubernetes_knows_every_key(index: int) -> None:
    kubernetes_validate.validate(documents()[index], KUBERNETES, strict=True)


def test_kubernetes_takes_the_pods() -> None:
    for template in templates():
        kubernetes_validate.validate(as_pod(template), KUBERNETES, strict=True)
    misspelled = as_pod(copy.deepcopy(templates()[0]))
    misspelled["spec"]["containers"][0]["readinessProbe"]["periodSecond"] = 5
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelled, KUBERNETES, strict=True)


# --- one cluster with one config ------------------------------------------------------------------------------------


def test_it_serves_what_the_config_for_clusters_says() -> None:
    assert serve_config() == config.read_document(ROOT / "cluster/serve.cluster.yaml"), (
        "serveConfigV2 in cluster/rayservice.yaml and cluster/serve.cluster.yaml differ: change both"
    )


def test_ray_is_the_one_that_is_installed() -> None:
    assert cluster()["rayVersion"] == ray.__version__


def offered(group: Document) -> dict[str, float]:
    [container] = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    own: dict[str, float] = json.loads(json.loads(group["rayStartParams"]["resources"]))
    return {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0)), **own}


def asked(deployment: Document) -> dict[str, float]:
    options = deployment["ray_actor_options"]
    return {"CPU": options["num_cpus"], "GPU": options.get("num_gpus", 0), **options["resources"]}


def test_each_stage_fits_its_own_group_and_no_other() -> None:
    homes = {"Ingress": "ingress", "SpeechToText": "stt", "LanguageModel": "llm", "TextToSpeech": "tts"}
    for deployment in serve_config()["applications"][0]["deployments"]:
        need = asked(deployment)
        fits = [
            name
            for name, group in groups().items()
            if all(offered(group).get(resource, 0) >= amount for resource, amount in need.items())
        ]
        assert fits == [homes[deployment["name"]]]


def test_the_groups_have_room_for_as_many_replicas_as_may_be_wanted() -> None:
    for deployment in serve_config()["applications"][0]["deployments"]:
        [name] = deployment["ray_actor_options"]["resources"]
        room = min(offered(groups()[name])[r] // amount for r, amount in asked(deployment).items() if amount)
        scaling = deployment["autoscaling_config"]
        assert room * groups()[name]["maxReplicas"] >= min(scaling["max_replicas"], 28), name
        assert room * groups()[name]["minReplicas"] >= scaling["min_replicas"], name


def test_the_head_carries_no_replica_and_its_state_is_in_redis() -> None:
    assert cluster()["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    options = cluster()["gcsFaultToleranceOptions"]
    host, port = options["redisAddress"].split(":")
    assert named("Service", host)["spec"]["ports"][0]["port"] == int(port)
    secret = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    [redis] = named("StatefulSet", host)["spec"]["template"]["spec"]["containers"]
    assert redis["env"][0]["valueFrom"]["secretKeyRef"] == secret


def test_every_pod_of_ray_is_probed() -> None:
    for template in templates():
        [container] = template["spec"]["containers"]
        assert container["livenessProbe"]["httpGet"]["path"].endswith("healthz")
        assert container["readinessProbe"]["httpGet"]["path"].endswith("healthz")


# --- closed ---------------------------------------------------------------------------------------------------------


def selects(policy: Document, labels: dict[str, str]) -> bool:
    wanted = policy["spec"]["podSelector"]["matchLabels"]
    return wanted.items() <= labels.items()


def open_ports(labels: dict[str, str], *, of: dict[str, str] | None) -> set[int] | str:
    """The ports of a pod with these labels that a pod with the labels `of` reaches; None: anybody else. "all": all."""
    policies = [d for d in documents() if d["kind"] == "NetworkPolicy" and selects(d, labels)]
    if not policies:
        return "all"
    ports: set[int] = set()
    for rule in (rule for policy in policies for rule in policy["spec"]["ingress"]):
        peers = rule.get("from")
        admits = peers is None or any(
            of is not None and peer["podSelector"]["matchLabels"].items() <= of.items() for peer in peers
        )
        if admits and "ports" not in rule:
            return "all"
        if admits:
            ports |= {port["port"] for port in rule["ports"]}
    return ports


def test_callers_reach_one_port_of_the_ingress_and_nothing_else() -> None:
    for template in templates():
        labels = template["metadata"]["labels"]
        reached = open_ports(labels, of=None)
        assert reached == ({8000} if labels["voice-serve/stage"] == "ingress" else set()), labels
    redis = named("StatefulSet", "voice-redis")["spec"]["template"]["metadata"]["labels"]
    assert open_ports(redis, of=None) == set()


def test_who_works_with_ray_reaches_what_it_needs() -> None:
    head = templates()[0]["metadata"]["labels"]
    ingress = groups()["ingress"]["template"]["metadata"]["labels"]
    assert open_ports(head, of=ingress) == "all"
    assert open_ports(ingress, of=head) == "all"
    assert open_ports(head, of={"app.kubernetes.io/name": "kuberay-operator"}) == {8265, 8000}
    assert open_ports(head, of={"app.kubernetes.io/name": "prometheus"}) == {8080, 9101}
    redis = named("StatefulSet", "voice-redis")["spec"]["template"]["metadata"]["labels"]
    assert open_ports(redis, of=head) == {6379}


def test_no_service_shows_a_port_of_ray() -> None:
    services = [d for d in documents() if d["kind"] == "Service" and d["metadata"]["name"] != "voice-redis"]
    assert [s["metadata"]["name"] for s in services] == ["voice"]
    for service in services:
        assert {port["targetPort"] for port in service["spec"]["ports"]} == {8000}
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    assert cluster()["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_no_secret_is_in_the_file() -> None:
    assert not [d for d in documents() if d["kind"] == "Secret"]
    for template in templates():
        [container] = template["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "voice-serve"}}]
        assert "env" not in container
