"""`voice-serve doctor`: what this machine has, what the config needs of it, and what to do where that is too much.

`fitting` decides, `measuring` measures, this shows. Exit code 0: it fits; 1: it does not.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deployments import models
from deployments.engines import smart_turn
from deployments.interfaces import EngineInfo, Stage

from . import config as configuration
from . import measuring, proxying
from .config import Config, ConfigError
from .conversation.endpointing import WAITS
from .fitting import Fit, assess, gigabytes
from .machine import Machine, look
from .measuring import Measurement
from .terminal import output

EXIT_FITS = 0
EXIT_TOO_SMALL = 1

_ROOT = Path(__file__).parents[1]
SHIPPED = ("config.yaml", "cluster/serve.gpu.yaml", "cluster/serve.multi-gpu.yaml")
"""From the least machine to the largest."""
_OPINION_LATE_S = WAITS["medium"].plain / 1000


@dataclass(frozen=True, slots=True)
class Report:
    config: str
    machine: Machine
    fit: Fit
    runs: Mapping[Stage, EngineInfo]
    """What would run now: where weights are not here, another engine than the configured one may."""
    measured: Mapping[Stage, Measurement]
    suits: str
    """The shipped config that suits this machine; empty where none is found or fits."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `doctor` to the command line; `run` carries it out."""
    parser = subparsers.add_parser(
        "doctor",
        help="see whether the config fits this machine, and how fast it is here",
        description="Shows cores, memory, GPUs and disk, the memory that each stage of the config needs, how fast "
        "its engine is on this machine, and which of the shipped configs suits. Uses no network. "
        "Exit code 0: it fits; 1: it does not.",
    )
    parser.add_argument("--config", default="config.yaml", help="the config to look at (%(default)s)")
    parser.add_argument(
        "--no-measure", action="store_true", help="do not load the engines to measure them; takes a second"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")


def run(args: argparse.Namespace, config: Config) -> int:
    """The exit code."""
    machine = look(_models_folder())
    document = configuration.read_document(Path(args.config))
    chosen: list[tuple[models.Options, EngineInfo]] = [
        models.choose(config.stt),
        models.choose(config.llm),
        models.choose(config.tts),
    ]
    runs: dict[Stage, EngineInfo] = {info.stage: info for _, info in chosen}
    measures: dict[Stage, Callable[[], Measurement]] = {
        info.stage: partial(measuring.measure, options) for options, info in chosen
    }
    if config.turn_taking.smart_turn:
        runs["turn"], measures["turn"] = smart_turn.info(), measuring.measure_turn_judge
    measured: dict[Stage, Measurement] = {}
    if not args.no_measure:
        for stage, measure in measures.items():
            print(f"measuring {stage} ({runs[stage].engine}) ...", file=sys.stderr)
            measured[stage] = measure()
    fit = _with_proxy(assess(config, document, machine), document)
    report = Report(args.config, machine, fit, runs, measured, suitable(machine))
    if args.json:
        print(json.dumps(_as_json(report), indent=2))
    else:
        _show(report, output())
    return EXIT_FITS if fit.fits else EXIT_TOO_SMALL


def _with_proxy(fit: Fit, document: Mapping[str, Any]) -> Fit:
    return replace(
        fit,
        problems=(*fit.problems, *proxying.problems(document, sys.platform)),
        warnings=(*fit.warnings, *proxying.warnings(document, sys.platform)),
    )


def suitable(machine: Machine, root: Path = _ROOT) -> str:
    """The shipped config for the most that this machine can carry."""
    best = ""
    for name in SHIPPED:
        try:
            config, document = configuration.read(root / name), configuration.read_document(root / name)
        except ConfigError:
            continue  # an installation without the shipped files
        if assess(config, document, machine).fits:
            best = name
    return best


def _models_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


# --- what is shown --------------------------------------------------------------------------------------------------


def _as_json(report: Report) -> dict[str, Any]:
    stages = [
        asdict(stage)
        | {"runs": asdict(report.runs[stage.stage])}
        | {"measured": asdict(report.measured[stage.stage]) if stage.stage in report.measured else None}
        for stage in report.fit.stages
    ]
    return {
        "config": report.config,
        "fits": report.fit.fits,
        "machine": asdict(report.machine),
        "stages": stages,
        "system_bytes": report.fit.system_bytes,
        "problems": list(report.fit.problems),
        "warnings": [*report.fit.warnings, *_slow(report)],
        "suits": report.suits,
    }


def _show(report: Report, console: Console) -> None:
    console.print(_machine_table(report.machine))
    console.print()
    console.print(_stage_table(report))
    console.print()
    console.print(_speed_table(report) if report.measured else "Speed was not measured (--no-measure).")
    console.print()
    total = gigabytes(report.fit.system_bytes)
    console.print(f"With Ray and Serve, {report.config} takes {total} of system memory.", soft_wrap=True)
    for sentence in report.fit.problems:
        console.print(f"[red]Problem:[/red] {sentence}.", soft_wrap=True)
    for sentence in (*report.fit.warnings, *_slow(report), *_stand_ins(report)):
        console.print(f"[yellow]Note:[/yellow] {sentence}.", soft_wrap=True)
    verdict = "fits this machine" if report.fit.fits else "does not fit this machine"
    console.print(f"[bold]{report.config} {verdict}.[/bold]", soft_wrap=True)
    if report.suits and Path(report.suits).name != Path(report.config).name:
        console.print(f"Of the shipped configs {report.suits} suits this machine.", soft_wrap=True)


def _machine_table(machine: Machine) -> Table:
    table = _table("machine", "")
    table.add_row("cores", f"{machine.cores:g}")
    memory = f"{gigabytes(machine.memory_bytes)}, {gigabytes(machine.free_memory_bytes)} free"
    table.add_row("memory", memory)
    table.add_row("disk", f"{gigabytes(machine.disk_free_bytes)} free for models in {machine.disk}")
    for index, gpu in enumerate(machine.gpus):
        has = f"{gpu.name}, {gigabytes(gpu.memory_bytes)}, {gigabytes(gpu.free_bytes)} free"
        table.add_row(f"GPU {index}", has)
    if not machine.gpus:
        table.add_row("GPU", f"none: {machine.gpu_note}")
    return table


def _stage_table(report: Report) -> Table:
    table = _table("stage", "engine", "model", "on", "memory", "", "weights", "counted from")
    for stage in report.fit.stages:
        replicas = f" x {stage.replicas}" if stage.replicas > 1 else ""
        table.add_row(
            stage.stage,
            stage.engine,
            stage.model,
            stage.device + replicas,
            gigabytes(stage.memory_bytes) if stage.need.is_known else "unknown",
            "fits" if stage.fits else "does not fit",
            stage.weights,
            stage.need.source or "its process alone",
        )
    return table


def _speed_table(report: Report) -> Table:
    table = _table("measured", "engine", "model", "to load", "first result", "per second of speech", "memory")
    for stage, measured in report.measured.items():
        info = report.runs[stage]
        if measured.problem:
            table.add_row(stage, info.engine, info.model, "", "", f"not measured: {measured.problem}", "")
            continue
        table.add_row(
            stage,
            info.engine,
            info.model,
            f"{measured.load_s:.1f} s",
            f"{measured.first_s * 1000:.0f} ms",
            f"{measured.rtf:.2f} s",
            gigabytes(measured.peak_bytes),
        )
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _slow(report: Report) -> list[str]:
    slow = [
        f"{stage}: {report.runs[stage].engine} takes {measured.rtf:.1f} s for a second of speech and cannot keep up: take "
        f"a smaller model, or raise {stage}.threads where cores are idle"
        for stage, measured in report.measured.items()
        if measured.rtf >= 1 and stage != "turn"
    ]
    turn = report.measured.get("turn", Measurement())
    if turn.first_s > _OPINION_LATE_S:
        slow.append(
            f"turn: an opinion takes {turn.first_s:.1f} s and comes when most turns have ended without it: write "
            "turn_taking.smart_turn: false"
        )
    return slow


def _stand_ins(report: Report) -> list[str]:
    return [
        f"{info.stage}: {info.engine} stands in, {info.reason}. Remedy: {info.remedy}"
        for info in report.runs.values()
        if info.remedy
    ]
