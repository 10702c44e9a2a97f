"""`voice-serve doctor`: what machines have, what models need, what is said where it is too much."""

import argparse
import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import models, sizing
from deployments.engines import smart_turn
from deployments.interfaces import EngineInfo
from deployments.options import LlmOptions, ScriptedLlm, SttOptions, TtsOptions
from serve_app import doctor, fitting, machine, measuring
from serve_app.config import Config
from serve_app.machine import Gpu, Machine
from serve_app.measuring import Measurement

GIB = 1 << 30
LAPTOP = Machine(4, 16 * GIB, 8 * GIB, 100 * GIB, "/models", (), "nvidia-smi is not on this machine")
SCRIPTED: dict[str, Any] = {
    "stt": {"engine": "scripted"},
    "llm": {"engine": "scripted"},
    "tts": {"engine": "scripted"},
}
SMART_TURN: dict[str, Any] = {"turn_taking": {"smart_turn": True}}


# --- the machine ----------------------------------------------------------------------------------------------------


def nvidia_smi(monkeypatch: pytest.MonkeyPatch, output: str = "", *, raises: Exception | None = None) -> None:
    def run(*_: object, **__: object) -> "subprocess.CompletedProcess[str]":
        if raises:
            raise raises
        return subprocess.CompletedProcess([], 0, output, "")

    monkeypatch.setattr(machine.subprocess, "run", run)


def test_a_machine_with_gpus_tells_their_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvidia_smi(monkeypatch, "NVIDIA H100, 80GB HBM3, 81559, 80000\nNVIDIA L4, 23034, 22000\n")
    found = machine.look(tmp_path / "not" / "made yet")
    assert found.gpus == (
        Gpu("NVIDIA H100, 80GB HBM3", 81559 << 20, 80000 << 20),
        Gpu("NVIDIA L4", 23034 << 20, 22000 << 20),
    )
    assert found.gpu_note == ""
    assert found.cores > 0
    assert 0 < found.free_memory_bytes <= found.memory_bytes
    assert found.disk_free_bytes > 0


@pytest.mark.parametrize(
    ("said", "raises"),
    [
        ("not on this machine", FileNotFoundError()),
        ("no answer within 10 s", subprocess.TimeoutExpired("nvidia-smi", 10)),
        ("couldn't communicate", subprocess.CalledProcessError(9, "x", "it couldn't communicate\nmore", "")),
        ("failed: 9", subprocess.CalledProcessError(9, "x", "", "")),
    ],
)
def test_a_machine_without_gpus_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, raises: Exception
) -> None:
    nvidia_smi(monkeypatch, raises=raises)
    found = machine.look(tmp_path)
    assert found.gpus == ()
    assert said in found.gpu_note


@pytest.mark.parametrize(("output", "said"), [("", "lists none"), ("[N/A], nothing, at all\n", "said")])
def test_an_answer_of_nvidia_smi_without_gpus_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str, said: str
) -> None:
    nvidia_smi(monkeypatch, output)
    found = machine.look(tmp_path)
    assert found.gpus == ()
    assert said in found.gpu_note


def test_a_container_has_what_its_limits_leave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvidia_smi(monkeypatch, raises=FileNotFoundError())
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("150000 300000\n")
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB // 4}\n")
    found = machine.look(tmp_path)
    assert (found.cores, found.memory_bytes) == (0.5, GIB)
    assert found.free_memory_bytes <= GIB * 3 // 4
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = machine.look(tmp_path)
    assert unlimited.cores >= 1
    assert unlimited.memory_bytes > GIB


# --- models ---------------------------------------------------------------------------------------------------------


def test_llama_needs_what_its_shape_says() -> None:
    options = LlmOptions(
        engine="sglang", model="meta-llama/Llama-3.1-8B-Instruct", context_tokens=1000, parallel=2
    )
    need = sizing.need(options, "cuda")
    assert need.weight_bytes == 16_060_000_000
    assert need.context_bytes == 131_072 * 1000 * 2
    assert need.model_bytes == int(need.weight_bytes * 1.2) + need.context_bytes
    halved = sizing.need(
        LlmOptions(engine="sglang", model=options.model, engine_args={"quantization": "fp8"}), "cuda"
    )
    assert halved.weight_bytes == need.weight_bytes // 2


def test_a_transformer_that_is_here_is_read(shared_models: Path) -> None:
    model = str(shared_models / "stories260K")
    need = sizing.need(
        LlmOptions(
            engine="sglang", model=model, context_tokens=512, parallel=1, engine_args={"dtype": "float32"}
        ),
        "cpu",
    )
    assert need.context_bytes == 2 * 5 * 4 * 8 * 2 * 512
    assert need.weight_bytes == pytest.approx(1_044_992, rel=0.01)
    assert "config.json" in need.source


def test_a_gguf_that_is_here_is_read() -> None:
    options = LlmOptions(
        engine="llama_cpp", model=models.EMBEDDED_CHAT_MODEL, parallel=1, context_tokens=1000
    )
    path = models.locate(options)
    if path is None:
        pytest.skip(models.missing(options))
    need = sizing.need(options, "cpu")
    assert need.weight_bytes == path.stat().st_size
    assert need.context_bytes == 30 * 3 * (64 + 64) * 2 * 1000, "SmolLM2-135M: 30 layers, 3 KV heads of 64"


def test_a_gguf_that_is_not_here_is_known_by_its_name() -> None:
    need = sizing.need(LlmOptions(engine="auto"), "cpu")
    assert need.weight_bytes == 1_117_320_736
    assert need.context_bytes == 2 * 28 * 2 * 128 * 2 * 4096 * 4
    other = sizing.need(
        LlmOptions(engine="llama_cpp", model="owner/Llama-3.2-3B-GGUF:llama-3.2-3b-Q4_K_M.gguf"), "cpu"
    )
    assert 1.9e9 < other.weight_bytes < 2.1e9
    unknown = sizing.need(LlmOptions(engine="llama_cpp", model="owner/Some:some-Q4_K_M.gguf"), "cpu")
    assert not unknown.is_known


def test_a_broken_file_is_unknown_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3))
    assert not sizing.need(LlmOptions(engine="llama_cpp", model=str(tmp_path / "bad.gguf")), "cpu").is_known
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json", "a.safetensors"):
        (tmp_path / name).write_text("[]")
    assert not sizing.need(LlmOptions(engine="sglang", model=str(tmp_path)), "cpu").is_known
    for name in ("model.bin", "vocabulary.json"):
        (tmp_path / name).write_bytes(b"\0" * 9)
    assert not sizing.need(SttOptions(engine="faster_whisper", model=str(tmp_path)), "cpu").is_known


def test_a_whisper_that_is_here_is_counted(shared_models: Path) -> None:
    folder = shared_models / "whisper-digits-int8"
    need = sizing.need(SttOptions(engine="faster_whisper", model=str(folder)), "cpu")
    stored = (folder / "model.bin").stat().st_size
    assert stored / 2 < need.weight_bytes < stored, "a byte each; its positions are stored as float32"
    assert need.context_bytes > 0


@pytest.mark.parametrize(
    ("model", "device", "compute_type", "weight_bytes"),
    [
        ("base.en", "cpu", "auto", 74e6),
        ("base.en", "cuda", "auto", 148e6),
        ("large-v3-turbo", "cuda", "float16", 809e6 * 2),
        ("large-v3-turbo", "cuda", "int8_float16", 809e6),
        ("large-v3", "cuda", "float16", 1550e6 * 2),
        ("distil-medium.en", "cpu", "int8", 394e6),
        ("Systran/faster-whisper-small", "cpu", "float32", 244e6 * 4),
    ],
)
def test_a_whisper_that_is_not_here_is_known_by_its_name(
    model: str, device: sizing.Device, compute_type: str, weight_bytes: float
) -> None:
    options = SttOptions(engine="faster_whisper", model=model, compute_type=compute_type)
    assert sizing.need(options, device).weight_bytes == weight_bytes


def test_engines_without_weights_take_their_process_alone() -> None:
    for options in (
        SttOptions(engine="pocketsphinx"),
        LlmOptions(engine="openai_compatible", model="m"),
        TtsOptions(engine="espeak"),
    ):
        need = sizing.need(options, "cpu")
        assert (need.model_bytes, need.is_known) == (0, True)
        assert need.process_bytes >= sizing.REPLICA_BYTES
    assert sizing.need(TtsOptions(), "cpu").model_bytes == int(82e6 * 4 * 1.2)


# --- fitting --------------------------------------------------------------------------------------------------------


def serve_config(**deployments: dict[str, Any]) -> dict[str, Any]:
    """A Serve config of which the deployments have these settings."""
    names = {"ingress": "Ingress", "stt": "SpeechToText", "llm": "LanguageModel", "tts": "TextToSpeech"}
    listed = [
        {"name": name, "ray_actor_options": {"num_cpus": 0.1}} | deployments.get(stage, {})
        for stage, name in names.items()
    ]
    return {"applications": [{"import_path": "serve_app.app:build", "deployments": listed}]}


def problem(args: dict[str, Any], on: Machine, **deployments: dict[str, Any]) -> str:
    found = fitting.assess(Config.parse(SCRIPTED | args), serve_config(**deployments), on)
    assert not found.fits
    return found.problems[0]


def gpus(count: int = 1, size_gib: int = 24) -> Machine:
    each = Gpu("some GPU", size_gib * GIB, size_gib * GIB)
    return Machine(16, 64 * GIB, 64 * GIB, 100 * GIB, "/models", (each,) * count)


def test_what_follows_a_script_fits_everywhere() -> None:
    found = fitting.assess(Config.parse(SCRIPTED), serve_config(), LAPTOP)
    assert (found.problems, found.warnings) == ((), ())
    assert [stage.memory_bytes for stage in found.stages] == [sizing.REPLICA_BYTES] * 3


def test_too_little_memory_is_a_problem_and_less_than_free_a_warning() -> None:
    args = {"llm": {"engine": "llama_cpp", "model": "x/Llama-3.1-8B:llama-3.1-8b-q8_0.gguf", "threads": 1}}
    assert "12.6 GB" not in problem(args, Machine(4, 4 * GIB, 4 * GIB, 100 * GIB, "/models"))
    assert "4.3 GB" in problem(args, Machine(4, 4 * GIB, 4 * GIB, 100 * GIB, "/models"))
    found = fitting.assess(Config.parse(SCRIPTED | args), serve_config(), LAPTOP)
    assert found.fits
    assert any("are free now" in sentence for sentence in found.warnings)


def test_less_than_twice_the_models_memory_is_a_warning() -> None:
    args = {"llm": {"engine": "llama_cpp", "model": "x/Llama-3.1-8B:llama-3.1-8b-q8_0.gguf", "parallel": 1}}
    found = fitting.assess(
        Config.parse(SCRIPTED | args), serve_config(), Machine(4, 18 * GIB, 18 * GIB, 100 * GIB, "/models")
    )
    assert found.fits
    assert any("less than twice" in sentence for sentence in found.warnings)


def test_replicas_count_each() -> None:
    args = {"llm": {"engine": "llama_cpp"}}
    one = fitting.assess(Config.parse(SCRIPTED | args), serve_config(), LAPTOP)
    two = fitting.assess(
        Config.parse(SCRIPTED | args), serve_config(llm={"autoscaling_config": {"min_replicas": 2}}), LAPTOP
    )
    assert two.system_bytes - one.system_bytes == one.stages[1].memory_bytes
    three = fitting.assess(Config.parse(SCRIPTED | args), serve_config(llm={"num_replicas": 3}), LAPTOP)
    assert three.stages[1].replicas == 3


def test_a_disk_without_room_for_what_is_fetched_is_a_problem() -> None:
    on = Machine(4, 16 * GIB, 16 * GIB, GIB, "/models")
    assert "HF_HOME" in problem({"llm": {"engine": "llama_cpp"}}, on)


def test_cpus_that_nobody_has_are_a_problem() -> None:
    assert "Ray would wait for ever" in problem({}, LAPTOP, llm={"ray_actor_options": {"num_cpus": 8}})
    assert "ask for 4.3 CPUs" in problem({}, LAPTOP, stt={"ray_actor_options": {"num_cpus": 4}})
    assert "ask for 5.3 CPUs" in problem({}, LAPTOP, stt={"num_replicas": 5, "ray_actor_options": {}})


def test_more_threads_than_cores_are_a_warning() -> None:
    args = {"stt": {"engine": "pocketsphinx", "threads": 5}}
    found = fitting.assess(Config.parse(SCRIPTED | args), serve_config(), LAPTOP)
    assert any("slow" in sentence for sentence in found.warnings)


def test_a_model_that_nobody_knows_is_told() -> None:
    args = {"llm": {"engine": "llama_cpp", "model": "owner/some:some.gguf"}}
    found = fitting.assess(Config.parse(SCRIPTED | args), serve_config(), LAPTOP)
    assert found.fits
    assert any("owner/some:some.gguf is neither here" in sentence for sentence in found.warnings)


def test_a_gpu_that_is_asked_for_in_vain_is_a_problem() -> None:
    settings = {"ray_actor_options": {"num_cpus": 0.1, "num_gpus": 0.5}}
    assert "nvidia-smi is not on this machine" in problem({}, LAPTOP, stt=settings)
    assert "LanguageModel 3 x 0.5" in problem({}, gpus(1), llm=settings | {"num_replicas": 3})
    whole = {"ray_actor_options": {"num_cpus": 0.1, "num_gpus": 2}}
    assert "LanguageModel 1 x 2" in problem({}, gpus(2), stt=settings, llm=whole)
    assert fitting.assess(Config.parse(SCRIPTED), serve_config(llm=whole), gpus(2)).fits


def test_cuda_without_a_gpu_of_its_deployment_is_a_problem() -> None:
    args = {"tts": {"engine": "kokoro", "device": "cuda"}}
    assert "give TextToSpeech num_gpus" in problem(args, gpus(1))


def test_auto_without_num_gpus_stays_on_the_cpu() -> None:
    found = fitting.assess(
        Config.parse(SCRIPTED | {"tts": {"engine": "kokoro"}, "stt": {"engine": "faster_whisper"}}),
        serve_config(stt={"ray_actor_options": {"num_gpus": 1}}),
        gpus(1),
    )
    assert [stage.device for stage in found.stages] == ["GPU 0", "CPU", "CPU"]
    assert "float16" not in found.stages[2].need.source


def test_fractions_share_a_gpu_and_what_is_too_much_for_it_is_a_problem() -> None:
    args = {
        "stt": {"engine": "faster_whisper", "model": "large-v3", "device": "cuda"},
        "tts": {"engine": "kokoro", "device": "cuda"},
    }
    settings = {"ray_actor_options": {"num_cpus": 0.1, "num_gpus": 0.5}}
    said = problem(args, gpus(1, 4), stt=settings, tts=settings)
    assert "GPU 0 (some GPU) has 4.3 GB" in said
    assert fitting.assess(
        Config.parse(SCRIPTED | args), serve_config(stt=settings, tts=settings), gpus(2, 8)
    ).fits


@pytest.mark.parametrize("is_alone", [True, False])
def test_sglang_beside_others_must_be_told_its_share(is_alone: bool) -> None:
    args = {
        "llm": {"engine": "sglang", "model": "meta-llama/Llama-3.1-8B-Instruct", "context_tokens": 1000},
        "tts": {"engine": "kokoro"},
    }
    half = {"ray_actor_options": {"num_cpus": 0.1, "num_gpus": 0.5}}
    deployments = {"llm": half} if is_alone else {"llm": half, "tts": half}
    found = fitting.assess(Config.parse(SCRIPTED | args), serve_config(**deployments), gpus(1, 80))
    assert any("has no mem_fraction_static" in sentence for sentence in found.warnings) is not is_alone


def test_the_second_opinion_counts_in_each_ingress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "smart-turn-v3.2-cpu.onnx"
    path.write_bytes(b"0" * 20_000_000)
    monkeypatch.setattr(smart_turn, "model_path", lambda: path)
    document = serve_config(ingress={"num_replicas": 3})
    without = fitting.assess(Config.parse(SCRIPTED), document, LAPTOP)
    found = fitting.assess(Config.parse(SCRIPTED | SMART_TURN), document, LAPTOP)
    turn = found.stages[-1]
    assert (turn.stage, turn.model, turn.device, turn.replicas, turn.weights) == (
        "turn",
        "smart-turn-v3.2-cpu",
        "CPU",
        3,
        "here",
    )
    assert turn.memory_bytes > 20_000_000 * 1.2
    assert found.system_bytes - without.system_bytes == 3 * turn.memory_bytes
    small = Machine(4, found.system_bytes - 1, found.system_bytes - 1, 100 * GIB, "/models")
    assert not fitting.assess(Config.parse(SCRIPTED | SMART_TURN), document, small).stages[-1].fits


def test_a_second_opinion_that_is_not_installed_is_counted_by_the_catalogue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smart_turn, "model_path", lambda: None)
    turn = fitting.assess(Config.parse(SCRIPTED | SMART_TURN), serve_config(), LAPTOP).stages[-1]
    assert turn.weights == "not here: the words alone decide"
    assert turn.need.source == "the catalogue"
    assert turn.memory_bytes > 8_000_000


# --- the command ----------------------------------------------------------------------------------------------------


def run(*words: str, config: Config, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    code = doctor.run(parser.parse_args(["doctor", *words]), config)
    return code, capsys.readouterr().out


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    monkeypatch.setattr(doctor, "look", lambda _: LAPTOP)

    def write(**deployments: dict[str, Any]) -> str:
        path = tmp_path / "some.yaml"
        path.write_text(json.dumps(serve_config(**deployments)))
        return str(path)

    return write


def test_it_tells_a_person(write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run("--config", write(), "--no-measure", config=Config(), capsys=capsys)
    assert code == 0
    for part in (
        "cores",
        "17.2 GB, 8.6 GB free",
        "none: nvidia-smi is not on this machine",
        "base.en",
        "fits",
    ):
        assert part in said
    assert "Speed was not measured" in said
    assert "some.yaml fits this machine." in said
    assert "Of the shipped configs config.yaml suits this machine." in said


def test_what_does_not_fit_is_exit_code_1(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tts={"ray_actor_options": {"num_gpus": 1}})
    code, said = run("--config", path, "--no-measure", config=Config(), capsys=capsys)
    assert code == 1
    assert "Problem: no GPU is left for num_gpus of TextToSpeech 1 x 1" in said
    assert "some.yaml does not fit this machine." in said


def test_it_tells_a_program(write: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    config = Config.parse(SCRIPTED)
    code, said = run("--config", write(), "--json", config=config, capsys=capsys)
    told = json.loads(said)
    assert code == 0
    assert told["fits"] is True
    assert told["machine"]["gpus"] == []
    assert [stage["stage"] for stage in told["stages"]] == ["stt", "llm", "tts"]
    assert told["stages"][0]["measured"]["problem"] == "follows a script"
    assert told["suits"] == "config.yaml"


def test_what_is_measured_is_shown_and_what_is_slow_is_told(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {
        SttOptions: Measurement(1.0, 0.5, 0.2, 100_000_000),
        LlmOptions: Measurement(problem="its process ended with -9"),
        TtsOptions: Measurement(1.0, 3.0, 1.5, 200_000_000),
    }
    monkeypatch.setattr(measuring, "measure", lambda options: measured[type(options)])
    _, said = run("--config", write(), config=Config.parse(SCRIPTED), capsys=capsys)
    assert "500 ms" in said
    assert "0.20 s" in said
    assert "not measured: its process ended with -9" in said
    assert "tts: scripted takes 1.5 s for a second of speech and cannot keep up" in said


def test_the_second_opinion_is_shown_with_its_time(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smart_turn, "model_path", lambda: Path(__file__))
    monkeypatch.setattr(measuring, "measure_turn_judge", lambda: Measurement(0.3, 0.7, 0.14, 160_000_000))
    config = Config.parse(SCRIPTED | SMART_TURN)
    path = write()
    _, said = run("--config", path, config=config, capsys=capsys)
    needed, measured = [line.split() for line in said.splitlines() if line.startswith("turn ")]
    assert needed[:4] == ["turn", "smart_turn", "test_doctor", "CPU"]
    assert {"700", "0.14", "160"} <= set(measured)
    assert "Note: turn: an opinion takes 0.7 s and comes when most turns have ended without it" in said
    _, told = run("--config", path, "--json", config=config, capsys=capsys)
    turn = json.loads(told)["stages"][-1]
    assert (turn["stage"], turn["runs"]["engine"], turn["measured"]["first_s"]) == ("turn", "smart_turn", 0.7)


def test_a_second_opinion_that_is_not_installed_is_told_with_its_remedy(
    write: Callable[..., str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smart_turn, "model_path", lambda: None)
    config = Config.parse(SCRIPTED | SMART_TURN)
    _, said = run("--config", write(), "--no-measure", config=config, capsys=capsys)
    assert "not here: the words alone decide" in said
    assert f"Remedy: {smart_turn.REMEDY}." in said


def test_a_stand_in_is_told_with_its_remedy() -> None:
    info = EngineInfo("stt", "pocketsphinx", "en-us", reason="the weights are not here", remedy="pull them")
    fit = fitting.assess(Config.parse(SCRIPTED), serve_config(), LAPTOP)
    report = doctor.Report("x.yaml", LAPTOP, fit, {"stt": info}, {}, "")
    assert doctor._stand_ins(report) == [
        "stt: pocketsphinx stands in, the weights are not here. Remedy: pull them"
    ]


# --- measuring ------------------------------------------------------------------------------------------------------


def test_the_embedded_voice_is_measured_in_a_process_of_its_own() -> None:
    measured = measuring.measure(TtsOptions(engine="espeak"))
    assert measured.problem == ""
    assert 0 < measured.rtf < 1
    assert measured.peak_bytes > 1_000_000


def test_an_engine_that_cannot_run_says_why(tmp_path: Path) -> None:
    measured = measuring.measure(LlmOptions(engine="llama_cpp", model=str(tmp_path / "nothing.gguf")))
    assert "nothing.gguf" in measured.problem


def test_an_engine_that_takes_too_long_is_ended() -> None:
    assert "not done within 0.05 s" in measuring.measure(TtsOptions(engine="espeak"), limit_s=0.05).problem


def test_what_runs_elsewhere_is_not_called() -> None:
    options = LlmOptions(engine="openai_compatible", model="m", base_url="http://127.0.0.1:9/v1")
    assert measuring.measure(options).problem == "runs elsewhere"


async def test_figures_are_ratios_to_speech() -> None:
    llm = LlmOptions(engine="scripted", scripted=ScriptedLlm(first_token_s=0.05, tokens_per_s=100))
    measured = await measuring._measured(llm)
    assert measured.first_s == pytest.approx(0.05, abs=0.05)
    assert measured.rtf == pytest.approx(3.5 / 100, rel=0.6)
    measured = await measuring._measured(TtsOptions(engine="scripted"))
    assert measured.first_s >= 0.1
    measured = await measuring._measured(SttOptions(engine="scripted"))
    assert measured.first_s == pytest.approx(0.1, abs=0.08)


def test_a_second_opinion_is_measured_or_says_how_to_get_it() -> None:
    measured = measuring.measure_turn_judge()
    if smart_turn.model_path() is None:
        assert measured == Measurement(problem=f"the model is not here: {smart_turn.REMEDY}")
    else:
        assert 0 < measured.first_s < measured.load_s + 1
        assert 0 < measured.rtf < measured.first_s


class SlowAtFirst:
    """A judge with a clock of its own."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.now = 0.0

    async def completeness(self, pcm: bytes) -> float:
        self.heard.append(pcm)
        self.now += 0.3 if len(self.heard) == 1 else 0.02
        return 0.5


async def test_an_opinion_is_timed_once_the_model_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = SlowAtFirst()
    monkeypatch.setattr(smart_turn, "load", lambda: judge)
    monkeypatch.setattr(measuring, "time", SimpleNamespace(monotonic=lambda: judge.now))
    measured = await measuring._judging()
    speech_s = len(judge.heard[-1]) / 2 / 16_000
    assert speech_s > 2
    assert (measured.load_s, measured.first_s) == (0.3, pytest.approx(0.02))
    assert measured.rtf == pytest.approx(0.02 / speech_s)
