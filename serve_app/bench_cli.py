"""`voice-serve bench`: how good and how fast an engine is on this machine, by itself and without a server.

`bench stt` measures models on recordings (--audio, --models) or shapes of Whisper without weights (--shapes), each
call by call or, with --callers, under load.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from deployments.engines import create
from deployments.interfaces import TRANSCRIBER_RATE, EngineError
from deployments.options import SttOptions

from .bench import callers, clips, report, transcribers, whisper_shapes
from .bench.report import Bars, Table
from .bench.transcribers import Measurement
from .terminal import PROGRESS, output

EXIT_OK = 0
EXIT_FAILED = 1
"""A model could not be measured; the others were."""
EXIT_NOTHING = 2
"""What was asked for cannot be measured."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `bench stt` to the command line; `run` carries it out."""
    parser = subparsers.add_parser(
        "bench",
        help="measure an engine by itself, on your recordings",
        description="How good and how fast an engine is on this machine. Stop the server first: it takes the cores.",
    )
    stages = parser.add_subparsers(dest="stage", required=True, metavar="stt")
    stt = stages.add_parser(
        "stt",
        help="word error rate, speed, memory; load; windows",
        description="Speech to text. Give --audio and --models to compare models on recordings, or --shapes to time "
        "Whisper's windows without weights; with --callers, under load. Exit code 1: a model could not be measured.",
    )
    stt.add_argument("--audio", type=Path, metavar="FOLDER", help="recordings; texts from a manifest.json")
    stt.add_argument(
        "--models", type=_names, default=[], metavar="A,B", help="as in a config, or pocketsphinx"
    )
    stt.add_argument("--noise", type=Path, metavar="FOLDER", help="recordings to lay over the others")
    stt.add_argument(
        "--snr", type=float, default=10.0, metavar="DB", help="of speech over noise (%(default)g)"
    )
    stt.add_argument("--callers", type=_numbers, default=[], metavar="1,8,32", help="batching on and off")
    stt.add_argument("--calls", type=int, default=200, help="for each number of callers (%(default)s)")
    stt.add_argument(
        "--shapes", type=_shapes, default=[], metavar="A,B", help=", ".join(whisper_shapes.SHAPES)
    )
    stt.add_argument("--threads", type=_numbers, default=[1], metavar="1,2", help="of a model (1)")
    stt.add_argument(
        "--repeats", type=int, default=1, help="calls a recording, or forwards a shape (%(default)s)"
    )
    stt.add_argument("--language", default="en", help="(%(default)s)")
    stt.add_argument("--long-windows", action="store_true", help="Whisper: always 30 s")
    stt.add_argument(
        "--out", type=Path, metavar="FILE", help="also write it there: a page if it ends with .html"
    )


def run(args: argparse.Namespace) -> int:
    """Carries out `args`; the exit code."""
    try:
        if args.shapes:
            return _shapes_under_load(args) if args.callers else _shape_times(args)
        if not args.audio or not args.models:
            raise clips.NothingToMeasure("give --audio and --models, or --shapes")
        return _under_load(args) if args.callers else _compare(args)
    except (clips.NothingToMeasure, EngineError) as error:
        PROGRESS.print(str(error), soft_wrap=True)
        return EXIT_NOTHING


def _compare(args: argparse.Namespace) -> int:
    if find_spec("jiwer") is None:
        raise clips.NothingToMeasure("jiwer is not installed: pip install 'voice-serve[bench]'")
    recordings, what = _recordings(args)
    measured = []
    for model in args.models:
        for threads in args.threads:
            name = Path(model).name + (f", {threads} threads" if len(args.threads) > 1 else "")
            PROGRESS.print(f"{name}: {len(recordings)} recordings")
            options = transcribers.options_of(
                model, threads=threads, short_windows=not args.long_windows, language=args.language
            )
            measured.append(transcribers.measure(name, options, recordings, repeats=args.repeats))
    for each in measured:
        if each.error:
            PROGRESS.print(f"{each.model}: {each.error}", soft_wrap=True)
    good = [each for each in measured if not each.error]
    if good:
        _tell(
            args.out, f"Speech to text: {what}", [_model_table(good, what), _length_table(good)], _plots(good)
        )
    return EXIT_OK if len(good) == len(measured) else EXIT_FAILED


def _under_load(args: argparse.Namespace) -> int:
    recordings, what = _recordings(args)
    times = []
    for model in args.models:
        options = transcribers.options_of(
            model, threads=args.threads[0], short_windows=not args.long_windows, language=args.language
        )
        if options.engine != "faster_whisper":
            raise clips.NothingToMeasure(f"{model} decodes nothing together: --callers is for Whisper models")
        engines = partial(_with_batch, options)
        load = callers.measure(
            engines, recordings, args.callers, calls=args.calls, max_batch=options.max_batch
        )
        times += [(Path(model).name, time) for time in load]
    _tell_load(args.out, f"Under load: {what}", times)
    return EXIT_OK


def _with_batch(options: SttOptions, max_batch: int) -> callers.Batching:
    engine: callers.Batching = create(replace(options, max_batch=max_batch))
    return engine


def _shapes_under_load(args: argparse.Namespace) -> int:
    silence = [clips.Clip("any", np.zeros(TRANSCRIBER_RATE, np.float32), "")]
    times = []
    for name in args.shapes:
        with whisper_shapes.random_model(whisper_shapes.SHAPES[name]) as folder:
            make = partial(_shape, name, folder, args.threads[0])
            load = callers.measure(
                make, silence, args.callers, calls=args.calls, max_batch=SttOptions().max_batch
            )
            times += [(name, time) for time in load]
    window, tokens = min(whisper_shapes.WINDOWS_S), whisper_shapes.TOKENS
    _tell_load(args.out, f"Under load: random weights, windows of {window} s, {tokens} tokens", times)
    return EXIT_OK


def _shape(name: str, folder: str, threads: int, max_batch: int) -> callers.Batching:
    return whisper_shapes.ShapeTranscriber(name, folder, threads=threads, max_batch=max_batch)


def _tell_load(out: Path | None, title: str, times: Sequence[tuple[str, callers.LoadTime]]) -> None:
    rows = [
        (
            model,
            str(time.callers),
            "on" if time.max_batch > 1 else "off",
            str(time.calls),
            f"{time.calls_per_s:.1f}",
            _ms(time.p50_s),
            _ms(time.p95_s),
            f"{time.batch:.1f}",
        )
        for model, time in times
    ]
    headings = ("model", "callers", "batching", "calls", "calls/s", "p50 ms", "p95 ms", "mean batch")
    plot = Bars(
        "Utterances a second",
        "/s",
        ("batching off", "batching on"),
        [
            (f"{model}, {off.callers} callers", (off.calls_per_s, on.calls_per_s))
            for (model, off), (_, on) in zip(times[::2], times[1::2], strict=True)
        ],
    )
    _tell(out, title, [Table(title, headings, rows)], [plot])


def _shape_times(args: argparse.Namespace) -> int:
    times = []
    for name in args.shapes:
        for threads in args.threads:
            for time in whisper_shapes.measure(name, threads=threads, repeats=max(3, args.repeats)):
                what = f"{name}, {threads} threads, {time.window_s} s, {time.batch} together"
                PROGRESS.print(f"{what}: {_ms(time.encode_s)} ms")
                times.append(time)
    rows = [
        (
            time.shape,
            str(time.threads),
            f"{time.window_s} s",
            str(time.batch),
            _ms(time.encode_s),
            _ms(time.decode_s),
            _ms(time.encode_s + time.decode_s),
        )
        for time in times
    ]
    headings = ("shape", "threads", "window", "together", "encode ms", "decode ms", "sum ms")
    note = f"int8, random weights, ms an utterance, best of {max(3, args.repeats)}; decode: {whisper_shapes.TOKENS} tokens."
    alone = [time for time in times if time.batch == 1]
    plot = Bars(
        "Encoding one utterance",
        "ms",
        [f"{window} s" for window in whisper_shapes.WINDOWS_S],
        [
            (
                f"{name}, {threads} threads",
                [t.encode_s * 1000 for t in alone if (t.shape, t.threads) == (name, threads)],
            )
            for name in args.shapes
            for threads in args.threads
        ],
    )
    _tell(args.out, "Whisper by window", [Table("Whisper by window", headings, rows, note)], [plot])
    return EXIT_OK


def _recordings(args: argparse.Namespace) -> tuple[list[clips.Clip], str]:
    recordings = clips.read(args.audio)
    if not args.noise:
        return recordings, args.audio.name
    noisy = clips.with_noise(recordings, clips.read(args.noise), args.snr)
    return noisy, f"{args.audio.name} with {args.noise.name} at {args.snr:g} dB"


def _model_table(measured: Sequence[Measurement], what: str) -> Table:
    rows = [
        (
            each.model,
            "-" if each.word_error_rate is None else f"{each.word_error_rate:.3f}",
            str(each.invented_words),
            f"{each.realtime_factor:.3f}",
            *(_ms(each.latencies()[-1].p50_s), _ms(each.latencies()[-1].p95_s)),
            f"{each.peak_bytes / 1e6:.0f}",
            f"{each.load_s:.1f}",
        )
        for each in measured
    ]
    headings = ("model", "WER", "invented", "RTF", "p50 ms", "p95 ms", "peak MB", "load s")
    note = "WER: of normalised words. Invented: words heard in recordings in which nothing is said. RTF: of computing, a second of audio."
    return Table(f"Models: {what}", headings, rows, note)


def _length_table(measured: Sequence[Measurement]) -> Table:
    rows = [
        (each.model, latency.utterances, str(latency.calls), _ms(latency.p50_s), _ms(latency.p95_s))
        for each in measured
        for latency in each.latencies()
    ]
    return Table("Latency by length of utterance", ("model", "utterance", "calls", "p50 ms", "p95 ms"), rows)


def _plots(measured: Sequence[Measurement]) -> list[Bars]:
    by_length = [
        (f"{each.model}, {latency.utterances}", (latency.p50_s * 1000, latency.p95_s * 1000))
        for each in measured
        for latency in each.latencies()[:-1]
    ]
    plots = [Bars("Latency by length of utterance", "ms", ("p50", "p95"), by_length)]
    rates = [(each.model, (each.word_error_rate,)) for each in measured if each.word_error_rate is not None]
    return [*plots, Bars("Word error rate", "", ("WER",), rates)] if rates else plots


def _tell(out: Path | None, title: str, tables: Sequence[Table], plots: Sequence[Bars]) -> None:
    report.show(output(), tables)
    if out:
        report.write(out, title, tables, plots)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f}"


def _items(text: str) -> Iterator[str]:
    return (item.strip() for item in text.split(",") if item.strip())


def _names(text: str) -> list[str]:
    return list(_items(text))


def _numbers(text: str) -> list[int]:
    numbers = [int(item) for item in _items(text)]
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"positive numbers, not {text!r}")
    return numbers


def _shapes(text: str) -> list[str]:
    unknown = [name for name in _items(text) if name not in whisper_shapes.SHAPES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} not among {', '.join(whisper_shapes.SHAPES)}")
    return _names(text)
