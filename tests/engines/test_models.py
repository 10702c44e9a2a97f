"""The catalogue, the decision of `engine: auto`, and `voice-serve models` against a hub of our own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments import model_download, models
from deployments.model_download import PullFailed, RemoteFile
from deployments.options import LlmOptions, SttOptions, TtsOptions

from .hub import COMMIT, Hub, running_hub

REPOSITORY = "someone/small-chat"
MODEL = f"{REPOSITORY}:chat.gguf"
CONTENT = bytes(range(256)) * 80_000
"""20 MB."""

COMMAND_LINE = """
import argparse, signal, sys
from deployments.options import LlmOptions
from serve_app import models_cli
signal.signal(signal.SIGINT, signal.default_int_handler)
parser = argparse.ArgumentParser()
models_cli.add_parser(parser.add_subparsers(required=True))
sys.exit(models_cli.run(parser.parse_args(["models", *sys.argv[2:]]), [LlmOptions(model=name) for name in sys.argv[1].split()]))
"""


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of this process, empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub({f"{REPOSITORY}/chat.gguf": CONTENT, f"{REPOSITORY}/README.md": b"hello"}) as hub:
        yield hub


def cache(folder: Path, repository: str, *names: str) -> Path:
    """Puts files of `repository` into the hub's cache, as a download leaves them."""
    home = folder / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    snapshot = home / "snapshots" / COMMIT
    for name in names:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(b"weights")
    return snapshot


def command(
    hub_or_url: Hub | str, home: Path, *arguments: str, named: str = MODEL
) -> "subprocess.Popen[str]":
    endpoint = hub_or_url if isinstance(hub_or_url, str) else hub_or_url.endpoint
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND_LINE, named, *arguments],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: "subprocess.Popen[str]") -> str:
    stdout, stderr = process.communicate(timeout=60)
    return stdout + stderr


def test_defaults_stay_under_two_gigabytes() -> None:
    described = [models.describe(options) for options in (SttOptions(), LlmOptions(), TtsOptions())]
    assert sum(weights.size_bytes or 0 for weights in described if weights) < 2_000_000_000
    assert {weights.licence for weights in described if weights} <= {"MIT", "Apache-2.0"}


def test_whisper_sizes_are_those_of_faster_whisper() -> None:
    from faster_whisper import available_models, utils

    described = {name: models.describe(SttOptions(model=name)) for name in available_models()}
    assert {name: weights.repository for name, weights in described.items() if weights} == utils._MODELS


def test_auto_without_weights_takes_what_is_embedded_and_says_the_remedy(empty_cache: Path) -> None:
    chosen = [models.choose(SttOptions())[1], models.choose(LlmOptions())[1], models.choose(TtsOptions())[1]]
    assert [info.engine for info in chosen] == ["pocketsphinx", "llama_cpp", "espeak"]
    assert models.choose(LlmOptions())[0].model == models.EMBEDDED_CHAT_MODEL
    assert all("not on this machine" in info.reason for info in chosen)
    assert {info.remedy for info in chosen} == {"voice-serve models pull"}


def test_auto_takes_the_better_engine_where_its_weights_are(empty_cache: Path) -> None:
    whisper = ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")
    cache(empty_cache, "Systran/faster-whisper-base.en", *whisper)
    repository, file = models.DEFAULT_CHAT_MODEL.split(":")
    cache(empty_cache, repository, file)
    cache(empty_cache, "hexgrad/Kokoro-82M", "config.json", "kokoro-v1_0.pth", "voices/af_heart.pt")
    chosen = [models.choose(SttOptions())[1], models.choose(LlmOptions())[1], models.choose(TtsOptions())[1]]
    assert [info.engine for info in chosen] == ["faster_whisper", "llama_cpp", "kokoro"]
    assert models.choose(LlmOptions())[0].model == models.DEFAULT_CHAT_MODEL
    assert all("are on this machine" in info.reason and not info.remedy for info in chosen)


@pytest.mark.parametrize("absent", ["tokenizer.json", "vocabulary.txt", "model.bin", "config.json"])
def test_half_a_download_counts_as_none(empty_cache: Path, absent: str) -> None:
    whole = {"config.json", "model.bin", "tokenizer.json", "vocabulary.txt"}
    cache(empty_cache, "Systran/faster-whisper-base.en", *sorted(whole - {absent}))
    assert models.locate(SttOptions()) is None


def test_weights_without_the_configured_voice_are_not_complete(empty_cache: Path) -> None:
    cache(empty_cache, "hexgrad/Kokoro-82M", "config.json", "kokoro-v1_0.pth", "voices/af_heart.pt")
    assert models.locate(TtsOptions(voice="af_heart"))
    assert models.locate(TtsOptions(voice="af_bella")) is None


def test_an_engine_named_in_the_config_is_kept(empty_cache: Path) -> None:
    options, info = models.choose(LlmOptions(engine="llama_cpp"))
    assert (options.engine, options.model) == ("llama_cpp", models.DEFAULT_CHAT_MODEL)
    assert (info.reason, info.remedy) == ("", "")
    scripted = TtsOptions(engine="scripted")
    assert models.choose(scripted)[0] is scripted


def test_a_local_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chat.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    assert models.choose(LlmOptions(model="chat.gguf"))[0].model == str(tmp_path / "chat.gguf")


@pytest.mark.parametrize("model", ["no-such-folder", "/no/such/folder", "not a name", "a/b/c", ""])
def test_a_model_that_is_nowhere_is_said_to_be(empty_cache: Path, model: str) -> None:
    assert models.locate(SttOptions(model=model)) is None
    assert "neither" in models.missing(SttOptions(model=model))
    assert "check the name" in models.choose(SttOptions(model=model))[1].remedy


def test_a_folder_that_lacks_a_file_is_told_which(tmp_path: Path) -> None:
    for name in ("config.json", "model.bin", "vocabulary.json"):
        (tmp_path / name).touch()
    assert models.missing(SttOptions(model=str(tmp_path))).endswith("lacks tokenizer.json")


def test_pull_fetches_the_model_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    pulling = command(hub, tmp_path, "pull")
    said = output(pulling)
    assert pulling.returncode == 0, said
    assert "All models that the config names are here." in said
    snapshot = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}" / "snapshots" / COMMIT
    assert [path.name for path in snapshot.iterdir()] == ["chat.gguf"]
    assert (snapshot / "chat.gguf").read_bytes() == CONTENT
    listing = command(hub, tmp_path, "list")
    assert str(snapshot) in output(listing)
    assert listing.returncode == 0


def test_ctrl_c_stops_with_a_sentence_and_the_next_pull_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.stall_after = 15_000_000
    pulling = command(hub, tmp_path, "pull")
    assert hub.stalled.wait(60)
    blobs = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}" / "blobs"
    pulling.send_signal(signal.SIGINT)
    said = output(pulling)
    assert pulling.returncode == 130, said
    assert "goes on from there" in said
    assert "Traceback" not in said
    parts = list(blobs.glob("*.part"))
    assert len(parts) == 1
    got = parts[0].stat().st_size
    assert 0 < got <= 15_000_000
    hub.stall_after = None
    hub.go_on.set()
    pulling = command(hub, tmp_path, "pull")
    assert "All models" in output(pulling)
    assert hub.ranges == ["bytes=0-", f"bytes={got}-"]
    assert [blob.read_bytes() == CONTENT for blob in blobs.iterdir()] == [True]


def test_a_download_that_breaks_off_goes_on_by_itself(hub: Hub, tmp_path: Path) -> None:
    hub.stall_after, hub.breaks = 15_000_000, 1
    hub.go_on.set()
    pulling = command(hub, tmp_path, "pull")
    said = output(pulling)
    assert pulling.returncode == 0, said
    assert len(hub.ranges) == 2
    assert hub.ranges[1] != "bytes=0-"


def test_a_damaged_download_is_deleted(hub: Hub, tmp_path: Path) -> None:
    hub.damage = b"damaged"
    pulling = command(hub, tmp_path, "pull")
    assert "chat.gguf arrived damaged and was deleted: pull again." in output(pulling)
    assert pulling.returncode == 1
    assert not list(tmp_path.rglob("*.part"))


def test_a_hub_that_refuses_the_connection_is_one_sentence(tmp_path: Path) -> None:
    pulling = command("http://127.0.0.1:9", tmp_path, "pull", "--answer-within-s", "5")
    said = output(pulling)
    assert pulling.returncode == 1
    assert "The model hub at http://127.0.0.1:9 cannot be reached" in said
    assert "Traceback" not in said


def test_a_hub_that_never_answers_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.is_silent = True
    other = "someone/other:chat.gguf"
    pulling = command(hub, tmp_path, "pull", "--answer-within-s", "0.5", named=f"{MODEL} {other}")
    said = output(pulling)
    assert pulling.returncode == 1
    assert said.count("The model hub did not answer within 0.5 s.") == 1
    assert f"Not here: {MODEL}, {other}." in said
    assert "Traceback" not in said


def test_a_repository_that_is_not_there_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.files.clear()
    pulling = command(hub, tmp_path, "pull")
    assert f"{REPOSITORY} is not on the model hub" in output(pulling)
    assert pulling.returncode == 1


def test_a_file_that_is_not_there_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    del hub.files[f"{REPOSITORY}/chat.gguf"]
    assert f"{REPOSITORY} has no file chat.gguf." in output(command(hub, tmp_path, "pull"))
    assert hub.ranges == []


def test_one_model_that_fails_does_not_keep_the_next(hub: Hub, tmp_path: Path) -> None:
    pulling = command(hub, tmp_path, "pull", named=f"someone/gone:chat.gguf {MODEL}")
    said = output(pulling)
    assert pulling.returncode == 1
    assert "someone/gone is not on the model hub" in said
    assert "Not here: someone/gone:chat.gguf." in said
    assert list(tmp_path.rglob("snapshots/*/chat.gguf"))


def test_a_full_disk_is_said_before_the_first_byte(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = models.describe(LlmOptions(model=MODEL))
    assert weights
    monkeypatch.setattr(model_download, "_remote_files", lambda *_: [RemoteFile("chat.gguf", 10**9)])
    monkeypatch.setattr(model_download, "_fetch", lambda *_: pytest.fail("fetched"))
    usage = shutil.disk_usage(empty_cache.parent)._replace(free=10**9)
    monkeypatch.setattr(model_download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(PullFailed, match=r"needs 1\.5 GB of disk, and .* has 1\.0 GB free"):
        model_download.pull(weights, answer_within_s=1)


def test_what_is_already_fetched_needs_no_disk(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = empty_cache / f"models--{REPOSITORY.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "0123.part").open("wb") as part:
        part.truncate(900_000_000)
    usage = shutil.disk_usage(empty_cache)._replace(free=700_000_000)
    monkeypatch.setattr(model_download.shutil, "disk_usage", lambda _: usage)
    model_download._check_disk(REPOSITORY, 1_000_000_000)
