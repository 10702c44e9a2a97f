"""Who may import whom: the arrows of the design, read from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.engines import CHAT_MODELS, SYNTHESIZERS, TRANSCRIBERS

ROOT = Path(__file__).parents[1]
OURS = ("serve_app", "deployments", "loadtest")
HEAVY = {
    "torch",
    "kokoro",
    "misaki",
    "spacy",
    "faster_whisper",
    "ctranslate2",
    "onnx",
    "onnxruntime",
    "xllamacpp",
    "pocketsphinx",
    "silero_vad",
    "sglang",
    "transformers",
    "huggingface_hub",
}


def source_files(*packages: str) -> list[Path]:
    files = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    assert files or packages == ("loadtest",), packages
    return files


def module_of(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules in full, relative ones resolved; `from a import b` counts as `a.b` where that is a module of ours."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in _run_at_import(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _resolved(path, node)
            found |= {_deepest(base, alias.name) for alias in node.names}
    return found


def _run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """All but the bodies of functions and what stands under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _run_at_import(node)


def _resolved(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        assert node.module is not None
        return node.module
    package = list(path.relative_to(ROOT).parent.parts)
    parents = package[: len(package) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _deepest(base: str, name: str) -> str:
    inner = ROOT.joinpath(*base.split("."), name)
    is_module = base.split(".")[0] in OURS and (inner.with_suffix(".py").is_file() or inner.is_dir())
    return f"{base}.{name}" if is_module else base


def is_under(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def assert_imports_only(path: Path, allowed: tuple[str, ...]) -> None:
    own_package = module_of(path.parent / "__init__.py")
    for module in imports_of(path):
        is_standard = module.split(".")[0] in sys.stdlib_module_names
        is_fine = is_standard or any(is_under(module, prefix) for prefix in (own_package, *allowed))
        assert is_fine, f"{path.relative_to(ROOT)} imports {module}"


ARROWS: dict[str, tuple[str, ...]] = {
    "serve_app/conversation": (),
    "serve_app/audio": ("numpy", "soxr"),
    "serve_app/realtime": (
        "serve_app.conversation",
        "serve_app.audio",
        "pydantic",
        "pydantic_core",
        "pybase64",
    ),
    "serve_app/session": (
        "serve_app.conversation",
        "serve_app.realtime",
        "serve_app.audio",
        "deployments.interfaces",
        "numpy",
    ),
    "serve_app/client": ("serve_app.audio.pcm", "numpy", "websockets"),
    "serve_app/stores": ("serve_app.session.resumption", "ray", "redis"),
}


@pytest.mark.parametrize("package", ARROWS)
def test_a_package_imports_only_what_the_design_allows(package: str):
    files = [path for path in source_files(package) if path.name != "engine_clients.py"]
    assert len(files) > 2
    for path in files:
        assert_imports_only(path, ARROWS[package])


def test_only_the_engine_clients_of_a_session_know_ray():
    path = ROOT / "serve_app/session/engine_clients.py"
    assert_imports_only(path, (*ARROWS["serve_app/session"], "ray"))
    assert any(is_under(module, "ray") for module in imports_of(path))


def test_ray_is_known_to_the_shells_alone():
    """What serves a caller, `server` and `web` first of all, asks no cluster for anything."""
    shells = {
        "app.py",
        "draining.py",
        "ingress.py",
        "observability.py",  # its metrics
        "session/engine_clients.py",
        "stores/ray_actor.py",
    }
    know_ray = {
        path.relative_to(ROOT / "serve_app").as_posix()
        for path in source_files("serve_app")
        if any(is_under(module, "ray") for module in imports_of(path))
    }
    assert know_ray == shells


def test_the_shells_of_the_front_door_stand_around_it_and_not_inside():
    """app -> ingress -> web -> server -> what a caller opens with; never back."""
    front_door = ("app", "ingress", "web", "server", "opening", "access", "handshake", "socket_transport")
    for depth, name in enumerate(front_door):
        outer = {f"serve_app.{shell}" for shell in front_door[:depth]}
        assert not imports_of(ROOT / f"serve_app/{name}.py") & outer, name
    for path in source_files("serve_app"):
        if "serve_app.ingress" in imports_of(path):
            assert path.name == "app.py", f"{path} imports the deployment"


def test_what_serve_keeps_to_itself_is_looked_into_in_two_files():
    for path in source_files("serve_app", "deployments"):
        private = {module for module in imports_of(path) if is_under(module, "ray.serve._private")}
        assert not private or path.name in {"draining.py", "routing.py"}, f"{path} imports {private}"


def test_deployments_never_import_the_application():
    for path in source_files("deployments"):
        for module in imports_of(path):
            assert module.split(".")[0] not in ("serve_app", "loadtest"), f"{path} imports {module}"


def test_the_engines_protocols_need_nothing_but_numpy():
    path = ROOT / "deployments/interfaces.py"
    third = {m.split(".")[0] for m in imports_of(path)} - set(sys.stdlib_module_names)
    assert third == {"numpy"}


def engine_files() -> list[Path]:
    return [path for path in source_files("deployments/engines") if path.name != "__init__.py"]


@pytest.mark.parametrize("name", sorted({*TRANSCRIBERS, *CHAT_MODELS, *SYNTHESIZERS, "silero_vad"}))
def test_an_engine_imports_its_library_only_when_it_is_made(name: str):
    for module in reachable_from(ROOT / f"deployments/engines/{name}.py"):
        assert module.split(".")[0] not in HEAVY, f"importing {name} imports {module}"


@pytest.mark.parametrize("path", engine_files(), ids=lambda path: path.stem)
def test_an_engine_knows_the_protocols_and_options_and_no_other_engine(path: Path):
    allowed = (
        "deployments.interfaces",
        "deployments.options",
        "deployments.models",
        "deployments.context",
        "deployments.gguf",
        "deployments.openai_chat",
        "deployments.mapped_text",
        "deployments.microbatch",
        "deployments.mapped_text",
    )
    family = path.stem.split("_")[0]  # kokoro.py and kokoro_g2p.py are one engine
    for module in imports_of(path):
        if module.split(".")[0] != "deployments":
            assert module.split(".")[0] not in ("ray", "serve_app"), f"{path.name} imports {module}"
            continue
        is_own = module.startswith(f"deployments.engines.{family}")
        is_fine = is_own or any(is_under(module, prefix) for prefix in allowed)
        assert is_fine, f"{path.name} imports {module}"


def test_the_shells_around_the_engines_know_them_by_name_only():
    for name in ("stt", "llm", "tts"):
        for module in imports_of(ROOT / f"deployments/{name}.py"):
            is_engine = module.startswith("deployments.engines.")
            assert not is_engine, f"deployments/{name}.py imports {module}: engines are chosen by name"
            assert module.split(".")[0] not in HEAVY


def reachable_from(path: Path) -> set[str]:
    """All modules that importing `path` imports, of ours all the way down."""
    seen: set[str] = set()
    waiting = [path]
    while waiting:
        for module in imports_of(waiting.pop(), top_level_only=True):
            if module in seen:
                continue
            seen.add(module)
            if module.split(".")[0] in OURS:
                waiting += _files_of(module)
    return seen


def _files_of(module: str) -> list[Path]:
    """The file of a module, and the `__init__` of each package around it."""
    place = ROOT.joinpath(*module.split("."))
    packages = [
        ROOT.joinpath(*module.split(".")[:depth], "__init__.py") for depth in range(1, module.count(".") + 2)
    ]
    return [file for file in [place.with_suffix(".py"), *packages] if file.is_file()]


@pytest.mark.parametrize("name", ["client.resuming", "client.microphone", "talk", "talk_live"])
def test_a_client_needs_no_ray_and_no_engine(name: str):
    for module in reachable_from(ROOT / "serve_app" / f"{name.replace('.', '/')}.py"):
        assert module.split(".")[0] not in {"ray", "fastapi", *HEAVY}, f"{name} needs {module}"


def test_the_load_test_is_a_client():
    """It may also read the scripted voice back, the listener's half of that code, and show what it found as a bench does.

    `frame-cost` alone looks inside.
    """
    listener = "deployments.engines.scripted_code"
    allowed = (
        "serve_app.client",
        "serve_app.talk",
        "serve_app.realtime",
        "serve_app.audio",
        "serve_app.machine",
        "serve_app.bench.report",
        "loadtest",
        listener,
    )
    with_voices = ("voices.py",)  # where no recordings are, callers speak with an engine
    for path in source_files("loadtest"):
        if path.name == "bench_frame_cost.py":
            continue
        for module in imports_of(path):
            if module.split(".")[0] in OURS:
                engines = (
                    "deployments",
                    "serve_app.bench.whisper_shapes",
                    "serve_app.conversation",
                    "serve_app.session.engine_clients",
                    "serve_app.session.replay",
                )
                is_engine_bench = path.name.startswith(("bench_", *with_voices)) and any(
                    is_under(module, e) for e in engines
                )
                is_fine = is_engine_bench or any(is_under(module, prefix) for prefix in allowed)
                assert is_fine, f"{path.relative_to(ROOT)} imports {module}"


def test_the_composition_root_alone_names_every_deployment():
    for path in source_files("serve_app"):
        named = imports_of(path) & {"deployments.stt", "deployments.llm", "deployments.tts"}
        assert not named or path.name == "app.py", f"{path} imports {named}"


# --- habits that a parser can see -----------------------------------------------------------------------------------


def calls_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call | ast.Attribute):
            yield ast.unparse(node.func if isinstance(node, ast.Call) else node)


OUTLIVES_WHO_WAITS = Path("serve_app/session/engine_clients.py")
"""A group would cancel what it reads, which is what it is there to prevent."""


def test_every_task_is_born_in_a_group():
    for path in source_files("serve_app", "deployments"):
        text = path.read_text()
        banned = {"asyncio.create_task", "asyncio.ensure_future"}
        if path.relative_to(ROOT) == OUTLIVES_WHO_WAITS:
            banned.remove("asyncio.ensure_future")
        for call in calls_in(path):
            assert call not in banned, path
            assert not call.endswith(("loop.create_task", "get_event_loop().create_task")), path
        assert "import create_task" not in text, path


@pytest.mark.parametrize("package", ["serve_app/conversation", "serve_app/realtime", "serve_app/audio"])
def test_the_core_has_no_clock_no_chance_and_no_log(package: str):
    impure = {
        "asyncio",
        "time",
        "datetime",
        "random",
        "secrets",
        "uuid",
        "logging",
        "os",
        "socket",
        "threading",
    }
    for path in source_files(package):
        found = {module.split(".")[0] for module in imports_of(path)} & impure
        assert not found, f"{path.relative_to(ROOT)} imports {found}"
        assert not any(
            isinstance(node, ast.AsyncFunctionDef) for node in ast.walk(ast.parse(path.read_text()))
        ), path


def test_the_environment_is_read_in_the_configuration_alone():
    for path in source_files("serve_app"):
        if path.name == "config.py":
            continue
        for call in calls_in(path):
            assert call not in ("os.environ", "os.getenv"), f"{path.relative_to(ROOT)} reads the environment"


# --- what is loaded -------------------------------------------------------------------------------------------------


def loaded_by(*modules: str) -> set[str]:
    """The top-level modules in a process that has imported these."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_no_process_loads_a_library_of_an_engine_that_it_does_not_run():
    loaded = loaded_by(
        "deployments.stt",
        "deployments.llm",
        "deployments.tts",
        "deployments.engines.silero_vad",
        "serve_app.ingress",
    )
    assert "ray" in loaded, "the check sees what is loaded"
    assert not loaded & HEAVY


def test_a_client_process_loads_no_ray():
    loaded = loaded_by("serve_app.client.resuming", "serve_app.talk")
    assert "websockets" in loaded
    assert not loaded & {"ray", "fastapi", *HEAVY}
