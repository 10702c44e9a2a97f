"""The configuration: one frozen tree, validated once when the application is built, passed down by value.

The environment is read here and nowhere else. An unknown key is refused with its path and the nearest valid name.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deployments.options import LlmOptions, SttOptions, TtsOptions

from .conversation.events import ServerVad
from .conversation.parameters import Parameters
from .proxying import HAPROXY_SWITCH

DEFAULT_CONFIG = Path("config.yaml")


PREFILL_AFTER_S = 0.1
"""A client that restores a conversation, or corrects a cut, sends the next event within a few tens of ms."""


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and what to write instead."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TurnTaking(_Section):
    """When the user's turn begins and ends, and when speech takes the floor. Clients may override the first three."""

    threshold: float = Field(default=0.5, ge=0.05, le=0.95)
    """Probability from which a frame counts as speech (Silero's own default)."""
    prefix_padding_ms: int = Field(default=300, ge=0, le=2000)
    silence_duration_ms: int = Field(default=500, ge=100, le=5000)
    """Silence that ends a turn."""
    eagerness: Literal["low", "medium", "high"] | None = None
    """Set: the wait follows what was said (`semantic_vad`) and `silence_duration_ms` is not used."""
    smart_turn: bool = False
    """Where the wait follows what was said (an `eagerness`, the wire's semantic_vad), how it sounds is asked too, of
    pipecat's smart-turn (`make turn` installs it), 35 ms of a core at each pause. Off: after good transcripts it takes a
    tenth off the wait, after poor ones it cuts more people off (loadtest/bench_endpointing)."""
    interruption_min_ms: int = Field(default=96, ge=32, le=2000)
    """Speech over the agent that interrupts it; three frames of 32 ms."""
    speech_min_ms: int = Field(default=64, ge=32, le=1000)
    """Sounds shorter than this are no speech."""
    pause_min_ms: int = Field(default=96, ge=32, le=1000)
    """The first silence, at which transcription starts ahead of the endpoint."""
    transcribe_at_pause: bool = True
    interim_ms: int = Field(default=0, ge=0, le=10_000)
    """The transcript so far is shown this often while the user speaks; less often where that would take more than half
    of the time. 0: never."""
    drafts_per_turn: int = Field(default=3, ge=0, le=10)
    """Answers begun at a pause in case it is the end of the turn; a wrong one costs tokens and is never heard. 0: none."""
    max_turn_s: float = Field(default=60, ge=1, le=300)
    """A turn is committed at this length whatever is being said."""


class Playout(_Section):
    lead_ms: int = Field(default=300, ge=40, le=5000)
    """How far ahead of real time audio is sent: covers jitter of the network, costs nothing in latency."""
    chunk_ms: int = Field(default=80, ge=40, le=100)


class Timeouts(_Section):
    """Seconds that a stage may take; a call that exceeds them is tried once more if nothing of it was sent."""

    stt_s: float = Field(default=8, gt=0)
    llm_first_token_s: float = Field(default=10, gt=0)
    llm_gap_s: float = Field(default=5, gt=0)
    """Between two tokens."""
    tts_first_audio_s: float = Field(default=8, gt=0)
    tts_gap_s: float = Field(default=8, gt=0)
    """Between two chunks."""
    send_s: float = Field(default=10, gt=0)
    """A client that has not taken an event for so long is disconnected."""


class Limits(_Section):
    max_sessions_per_replica: int = Field(default=8, ge=1)
    """Further callers are accepted and closed with 1013 and a sentence. A replica is one event loop: a core of its own
    carries about a hundred sessions (`python -m loadtest.bench sessions`), and fewer where engines share it. For more
    callers add replicas; a higher number only makes everyone wait."""
    max_session_s: float = Field(default=3600, gt=0)
    idle_timeout_s: float = Field(default=300, gt=0)
    """Without any event from the client."""
    max_outbox_bytes: int = Field(default=4 * 1024 * 1024, ge=64 * 1024)
    """Unsent events of one session; a client that reads too slowly for it is disconnected."""
    input_backlog_s: float = Field(default=120, gt=0)
    """How far a client's audio may run ahead of real time."""


class Access(_Section):
    auth: Literal["api_keys", "none"] = "api_keys"
    """none: anyone who can reach the server may use it, also beyond loopback."""
    api_keys_env: str = "VOICE_SERVE_API_KEYS"
    """Environment variable with the accepted keys, separated by commas; while it is unset no key is asked for."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of pages that browsers may connect from, besides the server's own; "*" for all."""


class Resume(_Section):
    """How a session outlives its socket, its replica or a redeploy."""

    store: Literal["actor", "redis", "none"] = "actor"
    """actor: a detached actor of this Ray cluster, lost with the node it is on. redis: outlives the head. none: off."""
    redis_url_env: str = "VOICE_SERVE_REDIS_URL"
    """Environment variable with the URL of the Redis server, redis://:password@host:6379/0; it may hold a password."""
    within_s: float = Field(default=60, ge=5, le=3600)
    """How long after the loss of its socket a session can be resumed. Its words stay in the store for so long."""
    drain_s: float = Field(default=25, ge=0, le=3600)
    """How long a session on a replica that is to go may take to come to the end of its turn. Keep it below the
    Ingress' graceful_shutdown_timeout_s and, in HAProxy mode, RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S (30),
    for then Serve cuts the sockets."""
    max_records: int = Field(default=20_000, ge=1)
    max_store_mb: int = Field(default=256, ge=1)
    """Of the actor: beyond either, what was saved longest ago goes."""
    max_snapshot_kb: int = Field(default=512, ge=1)
    """A session that needs more is no longer resumable, and the log says so."""


class Config(_Section):
    """`applications[].args` of the Serve config."""

    stt: SttOptions = SttOptions()
    llm: LlmOptions = LlmOptions()
    tts: TtsOptions = TtsOptions()
    turn_taking: TurnTaking = TurnTaking()
    playout: Playout = Playout()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    access: Access = Access()
    resume: Resume = Resume()
    apology: str = "Sorry, something went wrong on my side. Could you say that again?"
    """Spoken where an answer has failed for good, so that nobody waits in silence; in the voice's language. "": nothing."""
    session_log: str = ""
    """A folder for a record of each session, from which `voice-serve replay` shows again what it did; "": none.
    It holds what people said."""

    @classmethod
    def parse(cls, args: Mapping[str, Any]) -> Self:
        """Raises ConfigError with the path of every wrong key and, for an unknown one, the nearest valid name."""
        try:
            return cls.model_validate(dict(args))
        except ValidationError as error:
            problems = [_explain(cls, e["loc"], e["type"], e["msg"]) for e in error.errors()]
            raise ConfigError("the configuration has errors:\n  " + "\n  ".join(problems)) from None

    def server_vad(self) -> ServerVad:
        turns = self.turn_taking
        return ServerVad(
            turns.threshold, turns.prefix_padding_ms, turns.silence_duration_ms, eagerness=turns.eagerness
        )

    def parameters(self) -> Parameters:
        turns, llm = self.turn_taking, self.llm
        reads_ahead = llm.engine != "openai_compatible" if llm.prefill is None else llm.prefill
        return Parameters(
            interruption_min_ms=turns.interruption_min_ms,
            speech_min_ms=turns.speech_min_ms,
            pause_min_ms=turns.pause_min_ms,
            transcribe_at_pause=turns.transcribe_at_pause,
            interim_s=turns.interim_ms / 1000,
            drafts_per_turn=turns.drafts_per_turn,
            prefill_after_s=PREFILL_AFTER_S if reads_ahead else 0.0,
            max_turn_s=turns.max_turn_s,
            playout_lead_s=self.playout.lead_ms / 1000,
            apology=self.apology,
        )


def read(path: Path) -> Config:
    """The `args` of the voice application in a Serve config file. Raises ConfigError."""
    document = read_document(path)
    applications = document.get("applications") or []
    for application in applications:
        if application.get("import_path") == "serve_app.app:build":
            return Config.parse(application.get("args") or {})
    raise ConfigError(f"{path}: no application with import_path serve_app.app:build")


def read_document(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not a Serve config: a mapping with 'applications' is expected")
    return document


def api_keys(access: Access) -> frozenset[str]:
    """The keys that callers must show one of; empty: none is asked for."""
    value = os.environ.get(access.api_keys_env, "")
    return frozenset(key.strip() for key in value.split(",") if key.strip())


def redis_url(resume: Resume) -> str:
    """Where the records of sessions lie. Raises ConfigError if Redis is asked for and nobody says where it is."""
    if resume.store != "redis":
        return ""
    url = os.environ.get(resume.redis_url_env, "")
    if not url:
        raise ConfigError(f"resume.redis_url_env: the environment variable {resume.redis_url_env} is not set")
    return url


def with_secrets(options: LlmOptions) -> LlmOptions:
    """Fills in the key of a remote model. Raises ConfigError if its variable is named and not set."""
    if not options.api_key_env:
        return options
    key = os.environ.get(options.api_key_env)
    if not key:
        raise ConfigError(f"llm.api_key_env: the environment variable {options.api_key_env} is not set")
    return replace(options, api_key=key)


def is_haproxy_mode() -> bool:
    """Whether the application's runtime_env asks for HAProxy."""
    return os.environ.get(HAPROXY_SWITCH) == "1"


def client_api_key() -> str:
    """The key that `voice-serve talk` shows, unless told otherwise."""
    keys = os.environ.get("VOICE_SERVE_API_KEY") or os.environ.get("VOICE_SERVE_API_KEYS", "")
    return keys.split(",")[0].strip()


def _explain(root: type[BaseModel], loc: tuple[int | str, ...], kind: str, message: str) -> str:
    path = ".".join(str(part) for part in loc)
    if kind not in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{path}: {message}"
    known = _names_at(root, loc[:-1])
    nearest = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}"
    return f"{path}: unknown key; {hint}"


def _names_at(root: type[Any], path: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at `path` knows."""
    section = root
    for part in path:
        section = get_type_hints(section).get(str(part), section)
    if is_dataclass(section):
        return [f.name for f in fields(section) if f.repr]
    return list(section.model_fields) if issubclass(section, BaseModel) else []
