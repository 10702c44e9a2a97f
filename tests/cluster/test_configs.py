"""The shipped Serve configs: they parse, name only what exists, and fit the machines that they are for."""

from pathlib import Path
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from deployments.autoscaling import AUDIO_S_OWED, TOKENS_IN_FLIGHT
from deployments.options import LlmOptions
from loadtest.application import HAPROXY_APPLICATION, HAPROXY_CONTROLLER
from serve_app import config, doctor
from serve_app.app import check_access
from serve_app.fitting import Fit, assess
from serve_app.machine import Gpu, Machine

ROOT = Path(__file__).parents[2]
GPU, MULTI = "cluster/serve.gpu.yaml", "cluster/serve.multi-gpu.yaml"
CLUSTER = "cluster/serve.cluster.yaml"
SCRIPTED, RAMP = "loadtest/config.scripted.yaml", "loadtest/config.ramp.yaml"
NAMES = ["config.yaml", GPU, MULTI, CLUSTER, SCRIPTED, RAMP]
SCALING = [MULTI, CLUSTER, RAMP]
OWN_INTERVAL = pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")
"""config.ramp.yaml sets it; Ray's variables for it are not read yet (2.60)."""
DEPLOYMENTS = {"Ingress", "SpeechToText", "LanguageModel", "TextToSpeech"}
GIB = 1 << 30


def machine(*gpus_gib: int, memory_gib: int = 128, cores: int = 16) -> Machine:
    gpus = tuple(Gpu("some GPU", size * GIB, size * GIB) for size in gpus_gib)
    note = "" if gpus else "nvidia-smi is not on this machine"
    return Machine(cores, memory_gib * GIB, memory_gib * GIB, 500 * GIB, "/models", gpus, note)


def document(name: str) -> dict[str, Any]:
    return config.read_document(ROOT / name)


def fit(name: str, on: Machine) -> Fit:
    return assess(config.read(ROOT / name), document(name), on)


@OWN_INTERVAL
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_config_is_one_of_serve_and_of_ours(name: str) -> None:
    schema = ServeDeploySchema.model_validate(document(name))
    assert {deployment.name for deployment in schema.applications[0].deployments} == DEPLOYMENTS
    config.read(ROOT / name)


@pytest.mark.parametrize("name", ["config.yaml", GPU, MULTI, SCRIPTED, RAMP])
def test_nobody_else_can_reach_it_until_somebody_asks_for_it(name: str) -> None:
    assert document(name)["http_options"]["host"] == "127.0.0.1"


def test_a_cluster_asks_for_keys() -> None:
    """Its proxies reach replicas on other machines, so they listen on all interfaces; app.check_access does the rest."""
    assert document(CLUSTER)["http_options"]["host"] == "0.0.0.0"
    access = config.read(ROOT / CLUSTER).access
    assert access.auth == "api_keys"
    with pytest.raises(config.ConfigError, match="VOICE_SERVE_API_KEYS"):
        check_access(access, frozenset(), document(CLUSTER)["http_options"]["host"])


@pytest.mark.parametrize("name", [GPU, MULTI, CLUSTER, RAMP])
def test_a_config_for_many_callers_has_what_the_load_test_measured(name: str) -> None:
    """HAProxy and one event loop a replica, all of it in the file."""
    measured, shipped = document(SCRIPTED), document(name)
    environment = shipped["controller_options"]["runtime_env"]["env_vars"]
    assert environment.items() >= measured["controller_options"]["runtime_env"]["env_vars"].items()
    environment = shipped["applications"][0]["runtime_env"]["env_vars"]
    assert environment.items() >= measured["applications"][0]["runtime_env"]["env_vars"].items()
    assert measured["applications"][0]["runtime_env"]["env_vars"].items() >= HAPROXY_APPLICATION.items()
    assert measured["controller_options"]["runtime_env"]["env_vars"].items() >= HAPROXY_CONTROLLER.items()


@OWN_INTERVAL
@pytest.mark.parametrize("name", SCALING)
def test_each_stage_is_scaled_by_what_loads_it(name: str) -> None:
    schema = ServeDeploySchema.model_validate(document(name))
    scaling = {
        d.name: AutoscalingConfig.model_validate(d.autoscaling_config)
        for d in schema.applications[0].deployments
    }
    loads = {deployment: s.policy.policy_kwargs.get("load", "calls") for deployment, s in scaling.items()}
    assert loads == {
        "Ingress": "calls",
        "SpeechToText": "calls",
        "LanguageModel": TOKENS_IN_FLIGHT,
        "TextToSpeech": AUDIO_S_OWED,
    }
    for settings in scaling.values():
        if settings.policy.policy_kwargs:
            settings.policy.get_policy()(**settings.policy.policy_kwargs)
        assert settings.upscale_delay_s < settings.downscale_delay_s


@pytest.mark.parametrize("name", [GPU, *SCALING])
def test_a_deploy_starts_the_successor_of_an_ingress_replica_first(name: str) -> None:
    """Else nobody can call in between; where engines share the GPUs that there are, theirs cannot come first."""
    surges = {
        d["name"]: d.get("max_surge_percent", 0) for d in document(name)["applications"][0]["deployments"]
    }
    assert surges["Ingress"] > 0
    assert all(surges.values()) == (name in (CLUSTER, RAMP))


@pytest.mark.parametrize("name", [MULTI, CLUSTER])
def test_a_replica_is_added_before_the_ones_there_are_full(name: str) -> None:
    options, stages = config.read(ROOT / name), document(name)["applications"][0]["deployments"]
    scaling = {stage["name"]: stage["autoscaling_config"] for stage in stages}
    sessions = options.limits.max_sessions_per_replica
    assert 0.5 * sessions <= scaling["Ingress"]["target_ongoing_requests"] <= 0.7 * sessions
    assert scaling["SpeechToText"]["target_ongoing_requests"] < options.stt.max_batch
    assert options.llm.context_tokens
    room = options.llm.parallel * options.llm.context_tokens
    assert scaling["LanguageModel"]["policy"]["policy_kwargs"]["target"] < 0.7 * room


@pytest.mark.parametrize("name", [GPU, MULTI, CLUSTER])
def test_a_gpu_config_leaves_nothing_to_what_lies_on_one_disk(name: str) -> None:
    options = config.read(ROOT / name)
    assert (options.stt.engine, options.llm.engine, options.tts.engine) == (
        "faster_whisper",
        "sglang",
        "kokoro",
    )
    assert (options.stt.device, options.tts.device, options.stt.compute_type) == ("cuda", "cuda", "float16")
    assert 0 < options.llm.engine_args["mem_fraction_static"] < 1


@pytest.mark.parametrize("size", [40, 48, 80])
def test_one_gpu_carries_everything(size: int) -> None:
    found = fit(GPU, machine(size))
    assert found.problems == ()
    assert {stage.device for stage in found.stages} == {"GPU 0"}
    assert sum(stage.memory_bytes for stage in found.stages) < size * GIB


def test_one_gpu_that_is_too_small_is_told_what_to_change() -> None:
    found = fit(GPU, machine(24))
    assert not found.fits
    assert "mem_fraction_static" in found.problems[0]


def test_what_the_comment_says_for_24_gb_fits() -> None:
    options = config.read(ROOT / GPU)
    arguments = {"quantization": "fp8", "mem_fraction_static": 0.6}
    llm = LlmOptions(
        engine="sglang", model=options.llm.model, context_tokens=4096, parallel=8, engine_args=arguments
    )
    found = assess(options.model_copy(update={"llm": llm}), document(GPU), machine(24))
    assert found.problems == ()


def test_three_gpus_carry_a_stage_each() -> None:
    found = fit(MULTI, machine(8, 24, 8))
    assert found.problems == ()
    assert [stage.device for stage in found.stages] == ["GPU 0", "GPU 1", "GPU 2"]
    assert not fit(MULTI, machine(24, 24)).fits


def test_the_machines_of_a_cluster_carry_what_it_gives_them() -> None:
    assert fit(CLUSTER, machine(48, 48)).problems == (), (
        "as in ray-cluster.yaml: a GPU for the model, one for both voices"
    )
    assert not fit(CLUSTER, machine(24, 24)).fits, "its share of 24 GB would not hold weights and 40 windows"


@pytest.mark.parametrize(
    ("on", "name"),
    [
        (machine(), "config.yaml"),
        (machine(8), "config.yaml"),
        (machine(40), GPU),
        (machine(80, 80), GPU),
        (machine(24, 24, 24), MULTI),
        (machine(memory_gib=2), ""),
    ],
    ids=["no GPU", "a small one", "one", "two", "three", "nothing fits"],
)
def test_the_config_for_the_most_that_a_machine_carries_is_named(on: Machine, name: str) -> None:
    assert doctor.suitable(on) == name
