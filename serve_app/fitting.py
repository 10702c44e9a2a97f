"""Whether a configuration fits a machine: which stage runs where, what it needs there, and what to do where it is short.

Pure: the machine and the Serve config are arguments. Memory is `deployments.sizing`'s; where a stage runs follows from
its `num_gpus` (without one, Ray hides the GPUs from the replica) and its `device`. Ray packs fractions of a GPU onto
one GPU and gives whole numbers whole GPUs; so does `_places`.

A problem means that it does not fit and will not start or not stay up. A warning means that it runs worse than it could.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deployments import models, sizing
from deployments.engines import smart_turn
from deployments.interfaces import Stage
from deployments.options import LlmOptions, SttOptions, TtsOptions
from deployments.sizing import Device, Need

from .config import Config
from .machine import Machine

Options = SttOptions | LlmOptions | TtsOptions

_DEPLOYMENTS: dict[Stage, str] = {"stt": "SpeechToText", "llm": "LanguageModel", "tts": "TextToSpeech"}
_INGRESS = "Ingress"
SERVE_BYTES = 900_000_000
"""Ray and Serve without engines: controller, proxy, raylet, GCS, dashboard and the ingress replica."""
MEMORY_RULE = 2
"""System memory for a byte of model: while a model loads, its file lies in memory beside what is made from it."""
DISK_MARGIN = 500_000_000
_DEFAULT_STATIC_FRACTION = 0.85
"""What SGLang takes of a GPU by itself, about."""


@dataclass(frozen=True, slots=True)
class StageFit:
    stage: Stage
    engine: str
    """As configured; `auto` is shown as what it will be."""
    model: str
    device: str
    """`CPU`, `GPU 0`, or `no GPU` where it asks for one in vain."""
    replicas: int
    need: Need
    memory_bytes: int
    """On its device, of one replica."""
    fits: bool
    weights: str
    """Whether they are here, in a few words."""
    download_bytes: int = 0
    """Of what is not here."""


@dataclass(frozen=True, slots=True)
class Fit:
    stages: tuple[StageFit, ...]
    system_bytes: int
    """System memory of everything."""
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class _Findings:
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Place:
    options: Options
    stage: Stage
    replicas: int
    gpus_each: float
    gpu: int | None
    """Index of the GPU of its (first) replica; None without one."""

    @property
    def lacks_gpu(self) -> bool:
        return self.gpus_each > 0 and self.gpu is None


def assess(config: Config, document: Mapping[str, Any], machine: Machine) -> Fit:
    """How `config`, which `document` (its Serve config) places, fits `machine`."""
    findings = _Findings()
    places = _places(config, document, machine, findings)
    needs = {p.stage: sizing.need(p.options, _device(p)) for p in places}
    short = _check_gpus(places, needs, machine, findings)
    judge = _turn_judge(document) if config.turn_taking.smart_turn else None
    system_bytes, is_short = _check_memory(places, needs, judge, machine, findings)
    stages = tuple(
        _stage_fit(p, needs[p.stage], machine, fits=not (p.stage in short or (is_short and not p.gpus_each)))
        for p in places
    )
    if judge:
        stages += (replace(judge, fits=not is_short),)
    _check_disk(stages, machine, findings)
    _check_cores(config, document, machine, findings)
    for need in needs.values():
        if not need.is_known:
            findings.warnings.append(
                f"{need.stage}: {need.model} is neither here nor in the catalogue, so its memory is not counted: "
                f"run `{models.PULL_COMMAND}` and look again"
            )
    return Fit(stages, system_bytes, tuple(findings.problems), tuple(findings.warnings))


# --- where stages run -----------------------------------------------------------------------------------------------


def _places(
    config: Config, document: Mapping[str, Any], machine: Machine, findings: _Findings
) -> list[_Place]:
    left = [1.0] * len(machine.gpus)
    places = []
    stages: list[tuple[Stage, Options]] = [("stt", config.stt), ("llm", config.llm), ("tts", config.tts)]
    for stage, options in stages:
        settings = _deployment(document, _DEPLOYMENTS[stage])
        gpus_each = float((settings.get("ray_actor_options") or {}).get("num_gpus") or 0)
        replicas = _replicas(settings)
        taken = [_take(left, gpus_each) for _ in range(replicas)] if gpus_each else []
        gpu = None if None in taken else next(iter(taken), None)
        places.append(_Place(options, stage, replicas, gpus_each, gpu))
    if lacking := [place for place in places if place.lacks_gpu]:
        asked = ", ".join(f"{_DEPLOYMENTS[p.stage]} {p.replicas} x {p.gpus_each:g}" for p in lacking)
        has = f"{len(machine.gpus)} in all" if machine.gpus else f"no GPU ({machine.gpu_note})"
        findings.problems.append(
            f"no GPU is left for num_gpus of {asked}, and Ray would wait for ever: this machine has {has}. Lower "
            "num_gpus or the replicas, or take a config for fewer GPUs"
        )
    return places


def _take(left: list[float], wanted: float) -> int | None:
    """The first GPU with so much left, which is taken; whole numbers take whole GPUs."""
    if wanted > 1:
        free = [i for i, share in enumerate(left) if share == 1.0][: int(wanted)]
        if len(free) < wanted:
            return None
        for i in free:
            left[i] = 0.0
        return free[0]
    for i, share in enumerate(left):
        if share >= wanted - 1e-6:
            left[i] = share - wanted
            return i
    return None


def _deployment(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for application in document.get("applications") or []:
        for settings in application.get("deployments") or []:
            if settings.get("name") == name:
                found: Mapping[str, Any] = settings
                return found
    return {}


def _replicas(settings: Mapping[str, Any]) -> int:
    scaling = settings.get("autoscaling_config") or {}
    fixed = settings.get("num_replicas")
    return int(fixed if isinstance(fixed, int) else scaling.get("min_replicas", 1))


def _device(place: _Place) -> Device:
    """What the engine will find: `auto` is a GPU where the replica has one."""
    if isinstance(place.options, LlmOptions) or place.options.device == "auto":
        return "cuda" if place.gpus_each else "cpu"
    return place.options.device


# --- GPUs -----------------------------------------------------------------------------------------------------------


def _check_gpus(
    places: list[_Place], needs: Mapping[Stage, Need], machine: Machine, findings: _Findings
) -> set[Stage]:
    """The stages that have no GPU though they want one, or one that is too small for all that it carries."""
    short = {place.stage for place in places if place.lacks_gpu}
    for place in places:
        wants_gpu = not isinstance(place.options, LlmOptions) and place.options.device == "cuda"
        if wants_gpu and not place.gpus_each:
            short.add(place.stage)
            findings.problems.append(
                f"{place.stage}.device is cuda and its deployment has no GPU: give {_DEPLOYMENTS[place.stage]} num_gpus, "
                "or write device: auto"
            )
    for index, gpu in enumerate(machine.gpus):
        here = [place for place in places if place.gpu == index]
        taken = {place.stage: _gpu_bytes(place, needs[place.stage], gpu.memory_bytes) for place in here}
        _check_static(here, needs, gpu.memory_bytes, findings, short)
        if sum(taken.values()) > gpu.memory_bytes:
            short |= set(taken)
            parts = ", ".join(f"{stage} {gigabytes(size)}" for stage, size in taken.items())
            findings.problems.append(
                f"GPU {index} ({gpu.name}) has {gigabytes(gpu.memory_bytes)} and is to carry {gigabytes(sum(taken.values()))} "
                f"({parts}): lower llm.engine_args.mem_fraction_static, take smaller models, or spread the stages"
            )
    return short


def _gpu_bytes(place: _Place, need: Need, gpu_bytes: int) -> int:
    """GPU memory that a replica takes. SGLang takes its share whether it needs it or not, and more to compute with."""
    if not need.source:
        return 0
    if isinstance(place.options, LlmOptions) and need.engine == "sglang":
        activations = int(need.weight_bytes * (sizing.OVERHEAD - 1)) // _tp_size(place.options)
        return int(_static_fraction(place.options) * gpu_bytes) + activations + sizing.CUDA_CONTEXT_BYTES
    return need.model_bytes + sizing.CUDA_CONTEXT_BYTES


def _static_fraction(options: LlmOptions) -> float:
    return float(options.engine_args.get("mem_fraction_static", _DEFAULT_STATIC_FRACTION))


def _tp_size(options: LlmOptions) -> int:
    """GPUs that share one SGLang replica's weights."""
    return int(options.engine_args.get("tp_size", 1))


def _check_static(
    here: list[_Place],
    needs: Mapping[Stage, Need],
    gpu_bytes: int,
    findings: _Findings,
    short: set[Stage],
) -> None:
    """SGLang's own share must hold the weights and the conversations; beside others it must be given."""
    for place in here:
        need = needs[place.stage]
        if not isinstance(place.options, LlmOptions) or need.engine != "sglang":
            continue
        tp_size = _tp_size(place.options)
        share = int(_static_fraction(place.options) * gpu_bytes)
        if need.weight_bytes // tp_size + need.context_bytes // tp_size > share:
            short.add(place.stage)
            findings.problems.append(
                f"SGLang may take {gigabytes(share)} (mem_fraction_static {_static_fraction(place.options):g}) and its weights "
                f"with {place.options.parallel} conversations need "
                f"{gigabytes((need.weight_bytes + need.context_bytes) // tp_size)}: raise it, lower llm.context_tokens or "
                "llm.parallel, or take a smaller or quantised model"
            )
        if len(here) > 1 and "mem_fraction_static" not in place.options.engine_args:
            findings.warnings.append(
                "SGLang shares its GPU and llm.engine_args has no mem_fraction_static: it would take nearly all of it"
            )


# --- the rest of the machine ----------------------------------------------------------------------------------------


def _check_memory(
    places: list[_Place],
    needs: Mapping[Stage, Need],
    judge: StageFit | None,
    machine: Machine,
    findings: _Findings,
) -> tuple[int, bool]:
    """System memory that everything takes, and whether there is too little."""
    total, models_bytes = SERVE_BYTES, 0
    if judge:
        total += judge.memory_bytes * judge.replicas
        models_bytes += judge.need.model_bytes
    for place in places:
        need = needs[place.stage]
        on_cpu = 0 if place.gpus_each else need.model_bytes
        total += (need.process_bytes + on_cpu) * place.replicas
        models_bytes += need.model_bytes
    if total > machine.memory_bytes:
        findings.problems.append(
            f"everything together takes {gigabytes(total)} of system memory and this machine has "
            f"{gigabytes(machine.memory_bytes)}: take smaller models, or lower llm.context_tokens or llm.parallel"
        )
        return total, True
    if total > machine.free_memory_bytes:
        findings.warnings.append(
            f"everything together takes {gigabytes(total)} of system memory and {gigabytes(machine.free_memory_bytes)} are "
            "free now: close other programs first (or it is running already)"
        )
    if machine.memory_bytes < MEMORY_RULE * models_bytes:
        findings.warnings.append(
            f"system memory, {gigabytes(machine.memory_bytes)}, is less than twice that of the models, "
            f"{gigabytes(models_bytes)}: loading them may be slow"
        )
    return total, False


def _check_disk(stages: tuple[StageFit, ...], machine: Machine, findings: _Findings) -> None:
    wanted = sum(stage.download_bytes for stage in stages)
    if wanted and wanted + DISK_MARGIN > machine.disk_free_bytes:
        findings.problems.append(
            f"the models to fetch have {gigabytes(wanted)} and {machine.disk} has {gigabytes(machine.disk_free_bytes)} free: "
            "make room, or set HF_HOME to another disk"
        )


def _check_cores(config: Config, document: Mapping[str, Any], machine: Machine, findings: _Findings) -> None:
    asked = 0.0
    for name in (_INGRESS, *_DEPLOYMENTS.values()):
        settings = _deployment(document, name)
        each = (settings.get("ray_actor_options") or {}).get("num_cpus")
        asked += float(1.0 if each is None else each) * _replicas(settings)
    if asked > machine.cores:
        findings.problems.append(
            f"the deployments ask for {asked:g} CPUs and this machine has {machine.cores:g}: Ray would wait for ever. "
            "Lower num_cpus (fractions are fine) or the replicas"
        )
    on_cpu = [o for o in (config.stt, config.llm, config.tts) if o.engine not in ("scripted", "sglang")]
    threads = sum(options.threads for options in on_cpu)
    if threads > machine.cores:
        findings.warnings.append(
            f"the engines' threads add up to {threads} and this machine has {machine.cores:g} cores: stages will slow "
            "each other down"
        )


def _stage_fit(place: _Place, need: Need, machine: Machine, *, fits: bool) -> StageFit:
    gpu_bytes = machine.gpus[place.gpu].memory_bytes if place.gpu is not None else 0
    on_gpu = place.gpu is not None
    weights = models.describe(place.options)
    here, download = "needs none", 0
    if weights:
        here = "here" if weights.path else "not here"
        download = 0 if weights.path else weights.size_bytes or 0
    if weights and not weights.path and place.options.engine == "auto":
        here = "not here: a small model stands in"
    return StageFit(
        place.stage,
        need.engine,
        need.model,
        "no GPU" if place.lacks_gpu else f"GPU {place.gpu}" if on_gpu else "CPU",
        place.replicas,
        need,
        _gpu_bytes(place, need, gpu_bytes)
        if on_gpu
        else need.model_bytes + (not place.gpus_each) * need.process_bytes,
        fits,
        here,
        download,
    )


def _turn_judge(document: Mapping[str, Any]) -> StageFit:
    """It lives in the ingress, whose process is counted already, and on the CPU."""
    need = sizing.turn_judge()
    return StageFit(
        "turn",
        need.engine,
        need.model,
        "CPU",
        _replicas(_deployment(document, _INGRESS)),
        need,
        need.model_bytes,
        fits=True,
        weights="here" if smart_turn.model_path() else "not here: the words alone decide",
    )


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
