"""`voice-serve models`: which weights the config names, whether they are here, and fetching them.

Nothing here decides what the config says: the main command line loads it and passes the options of the stages.
"""

import argparse
from collections.abc import Sequence

from rich.table import Table

from deployments import models
from deployments.model_download import HubUnreachable, PullFailed, pull
from deployments.models import Options, Weights

from .terminal import PROGRESS, output

EXIT_OK = 0
EXIT_MISSING = 1
"""Something that the config names is not here."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as a shell counts it."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `models pull` and `models list` to the command line; `run` carries them out."""
    parser = subparsers.add_parser(
        "models",
        help="fetch or list the weights of the models that the config names",
        description="The weights of the models that the config names: fetch them, or see which are here.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="pull | list")
    pulling = actions.add_parser(
        "pull",
        help="fetch what is not here, from the model hub",
        description="Fetches the weights that are not here into the hub's cache (HF_HOME). Goes on where an earlier "
        "pull stopped; Ctrl-C keeps what was fetched. Exit code 0: all are here; 1: some are not; 130: interrupted.",
    )
    listing = actions.add_parser(
        "list",
        help="show each model, its size, its licence and where it lies",
        description="Shows the models that the config names, without using the network. Exit code 0: all are here; "
        "1: some are not.",
    )
    for action in (pulling, listing):
        action.add_argument(
            "--config", default="config.yaml", help="the config that names the models (%(default)s)"
        )
    pulling.add_argument(
        "--answer-within-s",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="give up when the hub has not answered by then; a download that has begun goes on (%(default)g)",
    )


def run(args: argparse.Namespace, options: Sequence[Options]) -> int:
    """Carries out `args` for the stages' options; the exit code."""
    named = [(stage, models.describe(stage)) for stage in options]
    if args.action == "list":
        return _list(named)
    try:
        return _pull([weights for _, weights in named if weights], args.answer_within_s)
    except KeyboardInterrupt:
        _say(f"Stopped. What was fetched is kept: `{models.PULL_COMMAND}` goes on from there.")
        return EXIT_INTERRUPTED


def _pull(named: Sequence[Weights], answer_within_s: float) -> int:
    absent = [weights for weights in named if weights.path is None]
    for weights in absent:
        if not weights.repository:
            _say(f"{weights.model} is no name on the model hub: correct it in the config.")
            continue
        _say(f"Fetching {weights.repository} ({_size(weights)}, licence {weights.licence or 'unknown'})")
        try:
            pull(weights, answer_within_s=answer_within_s, console=PROGRESS)
        except HubUnreachable as error:
            _say(str(error))
            break
        except PullFailed as error:
            _say(str(error))
        else:
            absent = [other for other in absent if other is not weights]
    if not absent:
        _say("All models that the config names are here.")
        return EXIT_OK
    _say(f"Not here: {', '.join(weights.model for weights in absent)}.")
    _say("With `engine: auto` the embedded engines stand in; pull again when the hub can be reached.")
    return EXIT_MISSING


def _say(sentence: str) -> None:
    PROGRESS.print(sentence, soft_wrap=True)


def _list(named: Sequence[tuple[Options, Weights | None]]) -> int:
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "model", "size", "licence", "where"):
        table.add_column(heading, overflow="fold")
    for options, weights in named:
        if weights is None:
            table.add_row("", options.engine, "", "", "has no weights to fetch")
        else:
            where = str(weights.path) if weights.path else "not here"
            table.add_row(weights.stage, weights.model, _size(weights), weights.licence or "unknown", where)
    output().print(table)
    absent = [weights for _, weights in named if weights and weights.path is None]
    if absent:
        print(f"\n{len(absent)} of them not here: `{models.PULL_COMMAND}` fetches what is on the model hub.")
        return EXIT_MISSING
    print("\nAll models that the config names are here.")
    return EXIT_OK


def _size(weights: Weights) -> str:
    if weights.size_bytes is None:
        return "size unknown"
    return (
        f"{weights.size_bytes / 1e9:.1f} GB"
        if weights.size_bytes >= 1e9
        else f"{weights.size_bytes / 1e6:.0f} MB"
    )
