"""`voice-serve`: the commands of a person at a terminal."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import bench_cli, config, doctor, models_cli, talk
from .session.replay import replay_file


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command; 2 for a configuration that cannot be read."""
    parser = argparse.ArgumentParser(
        prog="voice-serve",
        description="A voice agent on your own machines. Start the server with `make run` or `serve run config.yaml`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    talk.add_parser(commands, api_key=config.client_api_key() or None)
    models_cli.add_parser(commands)
    doctor.add_parser(commands)
    bench_cli.add_parser(commands)
    replaying = commands.add_parser("replay", help="what a recorded session did, from its log")
    replaying.add_argument(
        "file", type=Path, help="a .jsonl of the folder that the config's session_log names"
    )
    args = parser.parse_args(argv)
    if args.command == "talk":
        return talk.run(args)
    if args.command == "replay":
        return show_replay(args.file)
    if args.command == "bench":
        return bench_cli.run(args)
    try:
        options = config.read(Path(args.config))
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    if args.command == "doctor":
        return doctor.run(args, options)
    return models_cli.run(args, [options.stt, options.llm, options.tts])


def show_replay(path: Path) -> int:
    """Prints each command with the seconds since the session began."""
    try:
        steps = replay_file(path)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for now, commands in steps:
        for command in commands:
            print(f"{now - steps[0][0]:9.3f}  {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
