"""The composition root: from a config to the application of four deployments. The only file that names them all."""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any

import ray
from ray.serve import Application

from deployments import llm, models, stt, tts
from deployments.engines import silero_vad, smart_turn
from deployments.interfaces import EngineInfo
from deployments.options import LlmOptions, SttOptions, TtsOptions

from .config import Access, Config, ConfigError, Resume, api_keys, is_haproxy_mode, redis_url, with_secrets
from .ingress import Ingress
from .proxying import elsewhere
from .session.resumption import SessionStore
from .stores.ray_actor import ActorStore

log = logging.getLogger("ray.serve")


def build(args: Mapping[str, Any]) -> Application:
    """The application for `applications[].args` of a Serve config. Raises ConfigError.

    Which engine `auto` means is decided here, once, by what lies on this machine's disk.
    """
    config = Config.parse(args)
    check_platform(sys.platform, haproxy=is_haproxy_mode())
    keys = api_keys(config.access)
    check_access(config.access, keys, _listening_host())
    check_store(config.resume)
    refuse_auto_on_many_nodes(config, _alive_nodes())
    stt_options, stt_info = models.choose(config.stt)
    llm_options, llm_info = models.choose(with_secrets(config.llm))
    tts_options, tts_info = models.choose(config.tts)
    turn_info = smart_turn.info() if config.turn_taking.smart_turn else None
    for info in (turn_info, stt_info, llm_info, tts_info):
        if info is not None:
            announce(info)
    warn_of_too_many_threads(stt_options, llm_options, tts_options)
    config = config.model_copy(
        update={"stt": stt_options, "tts": tts_options, "llm": replace(llm_options, api_key="")}
    )
    ingress: Any = Ingress
    application: Application = ingress.bind(
        config,
        keys,
        silero_vad.load,
        EngineInfo("vad", "silero", "silero-vad (onnx)"),
        stt.bind(stt_options, stt_info),
        llm.bind(llm_options, llm_info),
        tts.bind(tts_options, tts_info),
        partial(session_store, config.resume, redis_url(config.resume)),
        turn_info,
        smart_turn.load if turn_info is not None and not turn_info.remedy else None,
    )
    return application


def check_store(resume: Resume) -> None:
    """Raises ConfigError where the store's client is missing: each replica would fail at its start."""
    if resume.store == "redis" and find_spec("redis") is None:
        raise ConfigError("resume.store: redis needs redis-py: pip install 'voice-serve[redis]'")


def session_store(resume: Resume, url: str) -> SessionStore | None:
    """Where the records of sessions lie; made in each ingress replica. None: nowhere."""
    match resume.store:
        case "actor":
            store = ActorStore(max_records=resume.max_records, max_bytes=resume.max_store_mb * 2**20)
            store.start()
            return store
        case "redis":
            from .stores.redis import RedisStore  # needs redis-py, which is an extra

            return RedisStore(url)
        case "none":
            return None


def announce(info: EngineInfo) -> None:
    """A fallback is a warning with its remedy; what was asked for is a plain line."""
    if info.remedy:
        log.warning(
            "%s: %s (%s) stands in: %s. Remedy: %s",
            info.stage,
            info.engine,
            info.model,
            info.reason,
            info.remedy,
        )
    else:
        log.info("%s: %s (%s)", info.stage, info.engine, info.model)


def refuse_auto_on_many_nodes(config: Config, nodes: int) -> None:
    """`auto` looks at one disk; on several nodes a replica may lie where the weights do not."""
    automatic = [
        s for s, o in (("stt", config.stt), ("llm", config.llm), ("tts", config.tts)) if o.engine == "auto"
    ]
    if nodes > 1 and automatic:
        known = {
            "stt": "faster_whisper or pocketsphinx",
            "llm": "llama_cpp, sglang or openai_compatible",
            "tts": "kokoro or espeak",
        }
        choices = "; ".join(f"{stage}.engine: {known[stage]}" for stage in automatic)
        raise ConfigError(f"engine: auto is for one node and this cluster has {nodes}. Write {choices}")


def warn_of_too_many_threads(*options: SttOptions | LlmOptions | TtsOptions) -> None:
    threads = sum(o.threads for o in options if o.engine != "scripted")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads > cores:
        log.warning(
            "the engines' threads add up to %d and this machine has %d cores: stages will slow each other down; "
            "lower stt.threads, llm.threads or tts.threads",
            threads,
            cores,
        )


def check_platform(platform: str, *, haproxy: bool) -> None:
    """Raises ConfigError where the config asks for a proxy that there is none of: nothing would listen."""
    if haproxy and platform != "linux":
        raise ConfigError(elsewhere(platform))


def check_access(access: Access, keys: frozenset[str], host: str | None) -> None:
    """Raises ConfigError for a server that others can reach and that asks nobody for a key."""
    if keys or access.auth == "none" or host is None or is_loopback(host):
        return
    raise ConfigError(
        f"http_options.host is {host}, so others can reach this server, and no API keys are set. Set the environment "
        f"variable {access.api_keys_env}, or listen on 127.0.0.1, or write access: {{auth: none}} to let anyone in"
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _listening_host() -> str | None:
    """Where Serve's proxies listen; None when Serve does not run yet, as when an application is only built."""
    try:
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return None
    options: Any = ray.get(controller.get_http_config.remote())
    host: str | None = options.host
    return host


def _alive_nodes() -> int:
    if not ray.is_initialized():
        return 1
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray has not typed it
    return sum(bool(node["Alive"]) for node in nodes)
