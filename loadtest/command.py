"""What the commands of `loadtest.bench` have in common: the folder of recordings, the proxy, and reading them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from serve_app.audio.pcm import Audio

from .application import ROOT
from .caller import recordings
from .voices import clear_to_silero

SHARED = ROOT.parent / "shared"
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], what: str
) -> argparse.ArgumentParser:
    """Adds the command that `run` carries out; `what` it is for. More options are the caller's."""
    command = commands.add_parser(name, help=what)
    command.set_defaults(run=run)
    command.add_argument(
        "--audio", type=Path, default=SHARED / "audio", help="recordings (default: %(default)s)"
    )
    command.add_argument("--proxy", choices=("default", "haproxy"), default="default")
    return command


def sentences(args: argparse.Namespace) -> dict[str, Audio]:
    return recordings(args.audio / "speech")


def strings(args: argparse.Namespace) -> dict[str, Audio]:
    """Spoken digits, cut close to the speech and said without a pause that would end a turn."""
    return recordings(args.audio / "digits")


def clear_strings(args: argparse.Namespace, noise: Audio) -> dict[str, Audio]:
    """Those of them that the detector hears for certain in this noise (two seconds of it); the others are named."""
    found = strings(args)
    clear = clear_to_silero(found, noise)
    others = sorted(found.keys() - clear.keys())
    print(f"{len(clear)} questions; without {others}, which Silero overhears or hears late")
    return clear


def noises(args: argparse.Namespace) -> dict[str, Audio]:
    return recordings(args.audio / "noise")


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
