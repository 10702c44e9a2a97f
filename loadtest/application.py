"""A Ray cluster of this process with a voice-serve application on it, started as a user would: `serve run FILE`.

The cluster belongs to this process and ends with the block, whatever happens in it. Because it does, this process can
also ask the replicas what they counted.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import ray
import yaml
from ray import serve
from ray.serve.context import _set_global_client

ROOT = Path(__file__).parent.parent
SCRIPTED = ROOT / "loadtest" / "config.scripted.yaml"
RAMP = ROOT / "loadtest" / "config.ramp.yaml"
APPLICATION = "voice"
ProxyMode = Literal["default", "haproxy"]

BUSY_MACHINE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
"""Serve kills its proxy when that is not ready within 5 s, and `serve run` fails."""
HAPROXY_CONTROLLER = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "7200",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",  # a dead HAProxy is replaced after three of these: 10 s by default
}
HAPROXY_APPLICATION = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""HAProxy in front and one event loop a replica."""


class StartFailed(Exception):
    """The application did not become ready; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Application:
    port: int
    log: Path
    ready_s: float
    """Seconds from `serve run` to the first 200 of /readyz."""
    config: Path
    """The Serve config that runs, as it was written for `serve run`."""
    address: str
    """Of the cluster."""

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def realtime(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/realtime"

    async def stats(self, deployment: str) -> dict[str, float]:
        """The call statistics of a deployment with one replica, and its process id."""
        handle = serve.get_deployment_handle(deployment, APPLICATION)
        async with asyncio.timeout(10):
            counted: dict[str, float] = await handle.stats.remote()
            return counted

    async def until_idle(self, deployment: str, within_s: float = 5.0) -> dict[str, float]:
        """The statistics once no call is active. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while True:
                counted = await self.stats(deployment)
                if counted["active"] == 0:
                    return counted
                await asyncio.sleep(0.02)

    async def until_cancelled(self, deployment: str, *, after: float, within_s: float = 5.0) -> float | None:
        """When the first call was cancelled that was so after this `last_cancel_at`; None where none was under way.

        Raises TimeoutError.
        """
        async with asyncio.timeout(within_s):
            while True:
                counted = await self.stats(deployment)
                if counted["last_cancel_at"] > after:
                    return counted["last_cancel_at"]
                if counted["active"] == 0:
                    return None
                await asyncio.sleep(0.02)

    def until_empty(self, within_s: float = 30.0) -> None:
        """Returns once the ingress has no session left. Raises TimeoutError."""
        deadline = time.monotonic() + within_s
        while httpx.get(f"{self.http}/healthz", timeout=10).json()["sessions"]:
            if time.monotonic() > deadline:
                raise TimeoutError("sessions are still open")
            time.sleep(0.1)

    def counter(self, name: str) -> float:
        """A metric of ours as Prometheus would read it from this node, summed over its tags; 0 while it has no value."""
        [node] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray has not typed it
        text = httpx.get(
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", timeout=10
        ).text
        lines = [
            line for line in text.splitlines() if line.startswith((f"ray_{name}_total{{", f"ray_{name}{{"))
        ]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def until_counted(self, name: str, expected: float, within_s: float) -> float:
        """The metric once it is as expected, or whatever it is after so long: Ray sends them in intervals."""
        deadline = time.monotonic() + within_s
        while (found := self.counter(name)) != expected and time.monotonic() < deadline:
            time.sleep(1.0)
        return found


def document(path: Path, args: Mapping[str, Any], proxy: ProxyMode, port: int) -> dict[str, Any]:
    """The Serve config at `path` with sections of `args` changed, its port, and its proxy mode.

    In HAProxy mode what the file sets for it stays, and what it lacks is added.
    """
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    [application] = config["applications"]
    for section, values in args.items():
        is_section = isinstance(values, Mapping)
        application["args"][section] = (
            {**application["args"].get(section, {}), **values} if is_section else values
        )
    controller_env = config.pop("controller_options", {}).get("runtime_env", {}).get("env_vars", {})
    application_env = application.pop("runtime_env", {}).get("env_vars", {})
    controller = dict(BUSY_MACHINE)
    if proxy == "haproxy":
        # Its statistics have fixed ports by default, which an HAProxy that outlived its cluster would still hold.
        ports = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("STATS", "METRICS")}
        controller |= {**HAPROXY_CONTROLLER, **controller_env, **ports}
        application["runtime_env"] = {"env_vars": {**HAPROXY_APPLICATION, **application_env}}
    config["controller_options"] = {"runtime_env": {"env_vars": controller}}
    return config


@contextmanager
def application(
    path: Path = SCRIPTED,
    args: Mapping[str, Any] | None = None,
    *,
    proxy: ProxyMode = "default",
    env: Mapping[str, str] | None = None,
    start_s: float = 180,
    cluster: Callable[[], AbstractContextManager[None]] | None = None,
) -> Iterator[Application]:
    """The application, ready; `args` are merged section by section over those of the file. Raises StartFailed.

    `env`: more variables of Serve, for its controller and the application alike; in HAProxy mode alone.
    `cluster`: one that this process is connected to within the block; None: a node of its own.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="voice-serve-") as folder:
        config = Path(folder) / "config.yaml"
        settings = document(path, args or {}, proxy, port)
        if env:
            settings["controller_options"]["runtime_env"]["env_vars"].update(env)
            settings["applications"][0]["runtime_env"]["env_vars"].update(env)
        config.write_text(yaml.safe_dump(settings))
        log = Path(folder) / "serve.log"
        with (cluster or one_node)():
            address = ray.get_runtime_context().gcs_address
            began = time.monotonic()
            with log.open("wb") as out, serve_run(config, address, out) as process:
                _until_ready(port, process, log, began + start_s)
                try:
                    yield Application(port, log, time.monotonic() - began, config, address)
                finally:
                    # Else `serve.status()` asks this cluster when the next one runs.
                    _set_global_client(None)  # type: ignore[no-untyped-call]  # Ray has not typed it


@contextmanager
def one_node() -> Iterator[None]:
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    node_id = ray.get_runtime_context().get_node_id()
    try:
        yield
    finally:
        ray.shutdown()
        end_haproxy(node_id)


def end_haproxy(node_id: str) -> None:
    """HAProxy outlives a cluster that is ended at once and may hold its ports: that of this node, and its old workers."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "haproxy" in Path(words[0]).name and any(f"/{node_id}/" in word for word in words):
                os.kill(int(process.name), signal.SIGKILL)


@contextmanager
def serve_run(config: Path, address: str, out: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`serve run`; of a config that runs already in another version, a redeploy."""
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config), "--address", address]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()  # the cluster is ours and ends next; a graceful `serve run` would wait 20 s for HAProxy
        process.wait()


def _until_ready(port: int, process: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    answer = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StartFailed(f"serve run ended with {process.returncode}:\n{tail(log)}")
        try:
            response = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=10)
        except httpx.HTTPError as error:
            answer = f"{type(error).__name__}"
        else:
            if response.status_code == 200:
                return
            answer = response.text
        time.sleep(0.2)
    raise StartFailed(f"not ready in time; last answer: {answer}\n{tail(log)}")


def tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
