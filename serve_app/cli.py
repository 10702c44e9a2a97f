"""`voice-serve`: the commands of a person at a terminal."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import config, models_cli, talk


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code of the command; 2 for a configuration that cannot be read."""
    parser = argparse.ArgumentParser(
        prog="voice-serve",
        description="A voice agent on your own machines. Start the server with `make run` or `serve run config.yaml`.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    talk.add_parser(commands, api_key=config.client_api_key() or None)
    models_cli.add_parser(commands)
    args = parser.parse_args(argv)
    if args.command == "talk":
        return talk.run(args)
    try:
        options = config.read(Path(args.config))
    except config.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return models_cli.run(args, [options.stt, options.llm, options.tts])


if __name__ == "__main__":
    sys.exit(main())
