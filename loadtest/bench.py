"""Benchmarks of a real application on Ray Serve: each starts it, calls it as live callers do, prints, and ends it.

python -m loadtest.bench turns --proxy haproxy --sessions 10
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from serve_app.audio.pcm import Audio

from . import (
    bench_barge_in,
    bench_cancel,
    bench_churn,
    bench_drafts,
    bench_espeak_words,
    bench_frame_cost,
    bench_gpu,
    bench_ramp,
    bench_sessions,
    bench_soak,
    bench_turns,
    bench_vanish,
    bench_warm,
    bench_words,
)
from .application import ROOT
from .caller import has_onset, recordings

SHARED = ROOT.parent / "shared"


def main() -> None:
    args = parser().parse_args()
    run: Callable[[argparse.Namespace], None] = args.run
    run(args)


Add = Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]
"""Adds a command: its name, what carries it out, what it is for."""


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python -m loadtest.bench", description=__doc__)
    commands = whole.add_subparsers(required=True, metavar="benchmark")

    def add(name: str, run: Callable[[argparse.Namespace], None], what: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=what)
        command.set_defaults(run=run)
        command.add_argument(
            "--audio", type=Path, default=SHARED / "audio", help="recordings (default: %(default)s)"
        )
        command.add_argument("--proxy", choices=("default", "haproxy"), default="default")
        return command

    turns = add("turns", run_turns, "latency account and overhead on scripted stages")
    turns.add_argument("--sessions", type=int, default=10)
    turns.add_argument("--turns", type=int, default=6, help="of each session")
    turns.add_argument("--stt-s", type=float, default=0.1)
    turns.add_argument(
        "--late", action="store_true", help="transcribe at the endpoint, not at the first silence"
    )
    turns.add_argument("--drafts", type=int, default=0, help="answers begun at a pause (default: none)")
    _add_session_tier(add)
    barge = add("barge-in", run_barge_in, "from onset to silence")
    barge.add_argument("--trials", type=int, default=40)
    barge.add_argument("--sentences", action="store_true", help="the sentences, not the strings of digits")
    barge.add_argument(
        "--everything", action="store_true", help="with drafts, interim transcripts and semantic_vad"
    )
    digits = add("digits", run_digits, "word error rate of live digit strings")
    digits.add_argument("--model", type=Path, default=SHARED / "models" / "whisper-digits-int8")
    digits.add_argument("--sessions", type=int, default=4)
    heard = add("heard", run_heard, "words kept in the history against words played")
    heard.add_argument("--cuts", type=int, default=40)
    espeak = add("heard-espeak", run_heard_espeak, "the same with a real voice, judged from the waveform")
    espeak.add_argument("--cuts", type=int, default=20)
    cancel = add("cancel", run_cancel, "how soon engines take new work after a cancelled call")
    cancel.add_argument("--trials", type=int, default=10)
    add("noise", run_noise, "what noise does to the floor")
    churn = add("churn", run_churn, "sessions dropped at random moments")
    churn.add_argument("--sessions", type=int, default=200)
    soak = add("soak", run_soak, "callers come and go for a long time")
    soak.add_argument("--sessions", type=int, default=20)
    soak.add_argument("--minutes", type=float, default=15)
    gpu = add("gpu", run_gpu, "mouth to ear with true dimensions and random weights")
    gpu.add_argument("--sessions", type=_numbers, default=[1, 8, 32], help="at once (default: 1,8,32)")
    gpu.add_argument("--turns", type=int, default=5, help="of each session")
    gpu.add_argument(
        "--size",
        choices=("full", "tiny"),
        default="full",
        help="full: Whisper large-v3-turbo, Llama 3.1 8B and Kokoro on one GPU; tiny: the same way on a CPU",
    )
    drafts = add("drafts", run_drafts, "answers begun ahead of the end of the turn, on and off")
    drafts.add_argument(
        "--engines",
        nargs="+",
        choices=("scripted", "pocketsphinx", "whisper-digits"),
        default=["scripted", "pocketsphinx", "whisper-digits"],
        help="ears; the laptop's have SmolLM2 and espeak with them (default: all)",
    )
    drafts.add_argument(
        "--models", type=Path, default=SHARED / "models", help="folder of the digits' Whisper"
    )
    drafts.add_argument("--clips", type=int, default=8, help="recordings, half of them with inner pauses")
    drafts.add_argument("--drafts", type=int, default=3, help="of a turn, at most, where they are on")
    drafts.add_argument(
        "--sessions", type=int, default=1, help="at a time (a laptop's engines share its cores: 1)"
    )
    _ramp_arguments(
        add("ramp", run_ramp, "callers become many and few again, replicas follow (HAProxy mode, Linux)")
    )
    add("vanish", run_vanish, "clients that stop reading or are cut off")
    warm = add("warm", run_warm, "first token with the prompt read ahead and without, llama.cpp")
    warm.add_argument("--model", default=bench_warm.MODEL, help="a GGUF (default: %(default)s)")
    warm.add_argument("--trials", type=int, default=5, help="of each situation")
    warm.add_argument("--rules", type=int, default=70, help="in the instructions; each has about 22 tokens")
    warm.add_argument("--threads", type=int, default=1)
    return whole


def _add_session_tier(add: Add) -> None:
    tier = add("sessions", run_sessions, "how many sessions a core carries (Linux; always behind HAProxy)")
    tier.add_argument("--sessions", type=_numbers, default=[10, 25, 50, 75, 100, 150], metavar="N,N,...")
    tier.add_argument(
        "--seconds", type=float, default=25.0, help="measured of each row (default: %(default)s)"
    )
    tier.add_argument(
        "--pin", action="store_true", help="ingress and proxy on one core, all else on the others"
    )
    tier.add_argument(
        "--over", type=int, metavar="CAP", help="instead: CAP sessions, and as many who are refused"
    )
    tier.add_argument("--drafts", type=int, default=0, help="answers begun at a pause (default: none)")
    add("frame-cost", run_frame_cost, "where each microsecond of 20 ms of input goes (without Ray and proxy)")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _ramp_arguments(ramp: argparse.ArgumentParser) -> None:
    ramp.add_argument("--sessions", type=int, default=16, help="at the height (default: %(default)s)")
    ramp.add_argument(
        "--drain-s", type=float, default=30, help="how long a removed ingress replica keeps its callers"
    )
    ramp.add_argument("--settle-s", type=float, default=60, help="wait so long for one replica a stage again")
    ramp.add_argument("--redeploy", action="store_true", help="replace every replica at the height")
    ramp.add_argument("--page", type=Path, help="write a page with plots here (.html)")


def sentences(args: argparse.Namespace) -> dict[str, Audio]:
    return recordings(args.audio / "speech")


def strings(args: argparse.Namespace) -> dict[str, Audio]:
    """Spoken digits, cut close to the speech and said without a pause that would end a turn."""
    return recordings(args.audio / "digits")


def run_turns(args: argparse.Namespace) -> None:
    bench_turns.run(
        list(strings(args).values()),
        proxy=args.proxy,
        sessions=args.sessions,
        turns=args.turns,
        stt_s=args.stt_s,
        early=not args.late,
        drafts=args.drafts,
    )


def run_sessions(args: argparse.Namespace) -> None:
    bench_sessions.run(
        list(strings(args).values()),
        recordings(args.audio / "noise")["office-ambience"],
        sessions=args.sessions,
        seconds=args.seconds,
        pins=args.pin,
        over=args.over,
        drafts=args.drafts,
    )


def run_frame_cost(args: argparse.Namespace) -> None:
    bench_frame_cost.run(recordings(args.audio / "noise")["office-ambience"])


def run_barge_in(args: argparse.Namespace) -> None:
    # Only where a recording is cut close to the speech is the onset of energy the onset of speech.
    clear = {n: c for n, c in sentences(args).items() if has_onset(c)} if args.sentences else strings(args)
    bench_barge_in.run(clear, proxy=args.proxy, trials=args.trials, everything=args.everything)


def run_digits(args: argparse.Namespace) -> None:
    bench_words.run_digits(args.audio, strings(args), args.model.resolve(), args.sessions, args.proxy)


def run_heard(args: argparse.Namespace) -> None:
    bench_words.run_heard(strings(args), args.cuts, args.proxy)


def run_heard_espeak(args: argparse.Namespace) -> None:
    bench_espeak_words.run(list(strings(args).values()), args.cuts, args.proxy)


def run_cancel(args: argparse.Namespace) -> None:
    bench_cancel.run(ROOT / "config.yaml", sentences(args)["LJ002-0020"], args.trials)


def run_noise(args: argparse.Namespace) -> None:
    bench_words.run_noise(recordings(args.audio / "noise"), sentences(args)["p287_001"], args.proxy)


def run_churn(args: argparse.Namespace) -> None:
    bench_churn.run(list(sentences(args).values()), args.sessions, args.proxy)


def run_soak(args: argparse.Namespace) -> None:
    bench_soak.run(list(strings(args).values()), args.sessions, args.minutes, args.proxy)


def run_gpu(args: argparse.Namespace) -> None:
    questions = list(strings(args).values())
    bench_gpu.run(questions, size=args.size, sessions=args.sessions, turns=args.turns, proxy=args.proxy)


def run_drafts(args: argparse.Namespace) -> None:
    for engines in args.engines:
        bench_drafts.run(
            engines,
            strings(args) if engines == "whisper-digits" else sentences(args),
            count=args.clips,
            drafts=args.drafts,
            sessions=args.sessions,
            proxy=args.proxy,
            models=args.models,
        )


def run_ramp(args: argparse.Namespace) -> None:
    bench_ramp.run(
        list(strings(args).values()),
        sessions=args.sessions,
        drain_s=args.drain_s,
        settle_s=args.settle_s,
        redeploy=args.redeploy,
        page=args.page,
    )


def run_vanish(args: argparse.Namespace) -> None:
    bench_vanish.run(sentences(args)["p287_001"], args.proxy)


def run_warm(args: argparse.Namespace) -> None:
    bench_warm.run(args.model, args.trials, args.rules, args.threads)


if __name__ == "__main__":
    main()
