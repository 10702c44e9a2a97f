"""Benchmarks of a real application on Ray Serve: each starts it, calls it as live callers do, prints, and ends it.

python -m loadtest.bench turns --proxy haproxy --sessions 10
"""

import argparse
from pathlib import Path

from . import bench_barge_in, bench_churn, bench_turns, bench_vanish, bench_words
from .caller import has_onset, recordings

AUDIO = Path(__file__).parent.parent.parent / "shared" / "audio"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description=__doc__)
    parser.add_argument(
        "--audio", type=Path, default=AUDIO, help="folder of recordings (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    turns = commands.add_parser("turns", help="latency account and overhead on scripted stages")
    turns.add_argument("--sessions", type=int, default=10)
    turns.add_argument("--turns", type=int, default=6, help="of each session")
    turns.add_argument("--stt-s", type=float, default=0.1)
    turns.add_argument(
        "--late", action="store_true", help="transcribe at the endpoint, not at the first silence"
    )
    turns.add_argument("--drafts", type=int, default=0, help="answers begun at a pause (default: none)")
    barge = commands.add_parser("barge-in", help="from onset to silence")
    barge.add_argument("--trials", type=int, default=40)
    barge.add_argument("--sentences", action="store_true", help="the sentences, not the strings of digits")
    digits = commands.add_parser("digits", help="word error rate of live digit strings")
    digits.add_argument("--model", type=Path, default=AUDIO.parent / "models" / "whisper-digits-int8")
    digits.add_argument("--sessions", type=int, default=4)
    heard = commands.add_parser("heard", help="words kept in the history against words played")
    heard.add_argument("--cuts", type=int, default=40)
    noise = commands.add_parser("noise", help="what noise does to the floor")
    churn = commands.add_parser("churn", help="sessions dropped at random moments")
    churn.add_argument("--sessions", type=int, default=200)
    vanish = commands.add_parser("vanish", help="clients that stop reading or are cut off")
    for command in (turns, barge, digits, heard, noise, churn, vanish):
        command.add_argument("--proxy", choices=("default", "haproxy"), default="default")
    args = parser.parse_args()
    clips, strings = recordings(args.audio / "speech"), recordings(args.audio / "digits")
    match args.command:
        case "turns":
            bench_turns.run(
                list(strings.values()),  # said without a pause that would end a turn
                proxy=args.proxy,
                sessions=args.sessions,
                turns=args.turns,
                stt_s=args.stt_s,
                early=not args.late,
                drafts=args.drafts,
            )
        case "barge-in":
            # The strings are cut close to the speech: only there is an energy onset the onset of speech.
            chosen = {n: c for n, c in clips.items() if has_onset(c)} if args.sentences else strings
            bench_barge_in.run(chosen, proxy=args.proxy, trials=args.trials)
        case "digits":
            bench_words.run_digits(args.audio, strings, args.model.resolve(), args.sessions, args.proxy)
        case "heard":
            bench_words.run_heard(strings, args.cuts, args.proxy)
        case "noise":
            bench_words.run_noise(recordings(args.audio / "noise"), clips["p287_001"], args.proxy)
        case "churn":
            bench_churn.run(list(clips.values()), args.sessions, args.proxy)
        case "vanish":
            bench_vanish.run(clips["p287_001"], args.proxy)
        case _:
            parser.error("unknown benchmark")


if __name__ == "__main__":
    main()
