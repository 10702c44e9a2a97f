"""The images' recipes, as far as they can be checked where no container engine runs. Hadolint's rules were run by hand."""

import ast
import fnmatch
import os
import re
import tomllib
from pathlib import Path

import pytest

from serve_app import config

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster/docker"
RECIPES = ["Dockerfile.cpu", "Dockerfile.gpu"]


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments), lines joined, comments left out."""
    lines = [line for line in (FOLDER / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    pairs = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(instruction, arguments.strip()) for instruction, arguments in pairs]


def of(name: str, instruction: str) -> list[str]:
    return [arguments for found, arguments in instructions(name) if found == instruction]


def is_in_the_context(path: str) -> bool:
    """By the rules of .dockerignore: the last that matches counts."""
    is_in = True
    for rule in (ROOT / ".dockerignore").read_text().split("\n"):
        pattern = rule.removeprefix("!")
        parts = Path(path).parts
        matches = any(fnmatch.fnmatch("/".join(parts[: i + 1]), pattern) for i in range(len(parts)))
        if rule and not rule.startswith("#") and matches:
            is_in = rule.startswith("!")
    return is_in


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_copied_is_there_and_not_ignored(name: str) -> None:
    for arguments in of(name, "COPY"):
        if arguments.startswith("--from"):
            continue
        *sources, _ = arguments.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert is_in_the_context(source), source


@pytest.mark.parametrize("name", RECIPES)
def test_the_packages_come_before_the_code(name: str) -> None:
    """A change of the code leaves the layers of several GB as they are."""
    steps = [arguments for instruction, arguments in instructions(name) if instruction in ("RUN", "COPY")]
    installed = next(i for i, step in enumerate(steps) if "/tmp/requirements.txt" in step)
    copied = next(i for i, step in enumerate(steps) if step.startswith("serve_app"))
    assert installed < copied


@pytest.mark.parametrize("name", RECIPES)
def test_it_runs_as_nobody_in_particular_over_a_volume_of_models(name: str) -> None:
    last_stage = [i for i, (found, _) in enumerate(instructions(name)) if found == "FROM"][-1]
    final = instructions(name)[last_stage:]
    users = [arguments for found, arguments in final if found == "USER"]
    assert users == ["1000"]
    assert of(name, "VOLUME") == ["/models"]
    assert "HF_HOME=/models" in " ".join(of(name, "ENV"))
    assert any("PULL_MODELS" in arguments for found, arguments in final if found == "RUN")
    # A volume that is declared before its folder is filled stays empty.
    filled = max(i for i, (found, text) in enumerate(final) if found == "RUN" and "PULL_MODELS" in text)
    assert filled < final.index(("VOLUME", "/models"))


@pytest.mark.parametrize("name", RECIPES)
def test_what_it_starts_is_there_and_may_be_run(name: str) -> None:
    (entry,) = of(name, "ENTRYPOINT")
    (health,) = of(name, "HEALTHCHECK")
    for command in (entry, health.partition("CMD ")[2]):
        (path,) = ast.literal_eval(command)
        file = ROOT / path.removeprefix("/app/")
        assert os.access(file, os.X_OK), f"{file} cannot be executed"
    environment = " ".join(of(name, "ENV"))
    shipped = re.search(r"VOICE_SERVE_CONFIG=/app/(\S+)", environment)
    assert shipped
    config.read(ROOT / shipped[1])


def test_the_entry_point_opens_every_shipped_config_to_the_containers_network() -> None:
    script = (FOLDER / "start.sh").read_text()
    replaced = re.search(r"sed 's/(.+?)/(.+?)/'", script)
    assert replaced
    for name in ("config.yaml", "cluster/serve.gpu.yaml", "cluster/serve.multi-gpu.yaml"):
        text = re.sub(replaced[1], replaced[2], (ROOT / name).read_text())
        assert text.count("host: 0.0.0.0") == 1, name


def test_no_secret_stays_in_an_image() -> None:
    for name in RECIPES:
        assert not re.search(r"(ARG|ENV)[^\n]*(TOKEN|KEY|SECRET)", (FOLDER / name).read_text())
    assert not is_in_the_context(".git")
    assert not is_in_the_context("tests")
    assert not is_in_the_context(".env")
    assert not is_in_the_context("serve_app/__pycache__")


def test_the_gpu_environment_is_pinned_as_the_project_asks() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints-gpu.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert "sglang==" + pins["sglang"] in project["optional-dependencies"]["gpu"]
    names = {name.lower().replace("_", "-") for name in pins}
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["gpu"]]:
        name = re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-")
        assert name in names, f"{requirement} is not pinned in constraints-gpu.txt"
