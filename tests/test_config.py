"""The configuration: one tree, unknown keys refused by name, secrets from the environment; and what `build` refuses."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.engines import smart_turn
from deployments.options import LlmOptions, SttOptions, TtsOptions
from serve_app import app
from serve_app.app import (
    check_access,
    check_store,
    is_loopback,
    refuse_auto_on_many_nodes,
    warn_of_too_many_threads,
)
from serve_app.config import (
    Access,
    Config,
    ConfigError,
    Resume,
    api_keys,
    client_api_key,
    read,
    read_document,
    redis_url,
    with_secrets,
)
from serve_app.opening import session_options

ROOT = Path(__file__).parents[1]


def complaint(args: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.parse(args)
    return str(caught.value)


# --- the tree -------------------------------------------------------------------------------------------------------


def test_nothing_has_to_be_written():
    config = Config.parse({})
    assert (config.stt.engine, config.llm.engine, config.tts.engine) == ("auto", "auto", "auto")
    assert config.access.auth == "api_keys"


def test_the_tree_cannot_be_changed():
    config = Config.parse({})
    with pytest.raises(ValidationError):
        config.limits = config.limits  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.limits.max_session_s = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"limit": {}}, "limit: unknown key; did you mean 'limits'?"),
        ({"limits": {"max_session": 3}}, "limits.max_session: unknown key; did you mean 'max_session_s'?"),
        ({"stt": {"engin": "auto"}}, "stt.engin: unknown key; did you mean 'engine'?"),
        (
            {"llm": {"scripted": {"first_tokens_s": 1}}},
            "llm.scripted.first_tokens_s: unknown key; did you mean 'first_token_s'?",
        ),
        ({"tts": {"voices": "x"}}, "tts.voices: unknown key; did you mean 'voice'?"),
        ({"turn_taking": {"silence_ms": 3}}, "turn_taking.silence_ms: unknown key; did you mean"),
        ({"playout": {"zzz": 1}}, "playout.zzz: unknown key; known here: lead_ms, chunk_ms"),
        ({"limits": {"max_session_s": -1}}, "limits.max_session_s: Input should be greater than 0"),
        ({"limits": {"max_session_s": "long"}}, "limits.max_session_s: Input should be a valid number"),
        ({"stt": {"engine": "whisper"}}, "stt.engine: Input should be 'auto', 'faster_whisper'"),
        ({"stt": "auto"}, "stt: "),
        ({"access": {"auth": "maybe"}}, "access.auth: Input should be 'api_keys' or 'none'"),
        ({"playout": {"chunk_ms": 200}}, "playout.chunk_ms: Input should be less than or equal to 100"),
    ],
)
def test_a_wrong_key_is_named_with_its_path(args: dict[str, Any], said: str):
    assert said in complaint(args)


def test_every_mistake_is_named_at_once():
    text = complaint({"limit": {}, "stt": {"engin": "auto"}, "playout": {"lead_ms": 0}})
    assert [line.split(":")[0].strip() for line in text.splitlines()[1:]] == [
        "stt.engin",
        "playout.lead_ms",
        "limit",
    ]


def test_the_key_of_a_model_is_not_offered_as_a_name_to_write_into_a_file():
    assert "api_key," not in complaint({"llm": {"qqqqqq": 1}})


def test_what_is_written_reaches_the_session():
    options = session_options(
        Config.parse(
            {
                "turn_taking": {"interruption_min_ms": 160, "max_turn_s": 30, "transcribe_at_pause": False},
                "playout": {"lead_ms": 500, "chunk_ms": 60},
                "timeouts": {
                    "stt_s": 1,
                    "llm_first_token_s": 2,
                    "llm_gap_s": 3,
                    "tts_first_audio_s": 4,
                    "tts_gap_s": 5,
                    "send_s": 6,
                },
                "limits": {
                    "max_session_s": 7,
                    "idle_timeout_s": 8,
                    "max_outbox_bytes": 100_000,
                    "input_backlog_s": 9,
                },
                "llm": {"max_tokens": 10, "temperature": 0.1, "top_p": 0.2},
            }
        )
    )
    parameters, limits = options.parameters, options.time_limits
    assert (parameters.interruption_min_ms, parameters.max_turn_s, parameters.transcribe_at_pause) == (
        160,
        30,
        False,
    )
    assert (parameters.playout_lead_s, options.chunk_ms) == (0.5, 60)
    assert (limits.stt_s, limits.llm_first_token_s, limits.llm_gap_s) == (1, 2, 3)
    assert (limits.tts_first_audio_s, limits.tts_gap_s, options.send_s) == (4, 5, 6)
    assert (options.max_session_s, options.idle_timeout_s) == (7, 8)
    assert (options.max_outbox_bytes, options.input_backlog_s) == (100_000, 9)
    assert (options.sampling.max_tokens, options.sampling.temperature, options.sampling.top_p) == (
        10,
        0.1,
        0.2,
    )


def test_a_configured_vad_is_what_a_session_starts_with():
    vad = Config.parse(
        {"turn_taking": {"threshold": 0.7, "prefix_padding_ms": 100, "silence_duration_ms": 900}}
    ).server_vad()
    assert (vad.threshold, vad.prefix_padding_ms, vad.silence_duration_ms) == (0.7, 100, 900)


# --- files ----------------------------------------------------------------------------------------------------------


def test_the_shipped_config_is_valid():
    config = read(ROOT / "config.yaml")
    assert config.llm.system_prompt
    assert config.limits.max_sessions_per_replica >= 1
    document = read_document(ROOT / "config.yaml")
    assert document["http_options"]["host"] == "127.0.0.1", "beyond loopback only when somebody asks for it"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("applications: [{import_path: other:build}]", "no application with import_path serve_app.app:build"),
        ("{}", "no application"),
        ("- a\n- b", "not a Serve config"),
        ("a: [", "not YAML"),
        (
            "applications: [{import_path: 'serve_app.app:build', args: {sst: {}}}]",
            "sst: unknown key; did you mean 'stt'?",
        ),
    ],
)
def test_a_file_that_is_no_config_says_so(tmp_path: Path, text: str, said: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r".") as caught:
        read(path)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_says_so(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: No such file"):
        read(tmp_path / "nothing.yaml")


def test_an_application_without_args_has_the_defaults(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("applications: [{import_path: 'serve_app.app:build'}]")
    assert read(path) == Config()


# --- the environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "keys"),
    [(None, set()), ("", set()), (" , ", set()), ("a", {"a"}), ("a, b,,c ", {"a", "b", "c"})],
)
def test_the_keys_come_from_the_variable_that_the_config_names(
    monkeypatch: pytest.MonkeyPatch, value: str | None, keys: set[str]
):
    monkeypatch.delenv("MY_KEYS", raising=False)
    monkeypatch.setenv("VOICE_SERVE_API_KEYS", "not-this")
    if value is not None:
        monkeypatch.setenv("MY_KEYS", value)
    assert api_keys(Access(api_keys_env="MY_KEYS")) == keys


def test_the_key_of_a_remote_model_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODEL_KEY", "secret")
    filled = with_secrets(LlmOptions(engine="openai_compatible", api_key_env="MODEL_KEY"))
    assert filled.api_key == "secret"
    assert "secret" not in repr(filled)


def test_a_key_that_is_named_and_not_set_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MODEL_KEY", raising=False)
    with pytest.raises(ConfigError, match="MODEL_KEY is not set"):
        with_secrets(LlmOptions(api_key_env="MODEL_KEY"))
    assert with_secrets(LlmOptions()).api_key == ""


def test_the_url_of_redis_is_asked_for_only_where_redis_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WHERE", raising=False)
    assert redis_url(Resume()) == ""
    resume = Resume(store="redis", redis_url_env="WHERE")
    with pytest.raises(ConfigError, match="WHERE is not set"):
        redis_url(resume)
    monkeypatch.setenv("WHERE", "redis://:secret@host:6379/0")
    assert redis_url(resume) == "redis://:secret@host:6379/0"


@pytest.mark.parametrize(
    ("environment", "key"),
    [
        ({}, ""),
        ({"VOICE_SERVE_API_KEYS": "a,b"}, "a"),
        ({"VOICE_SERVE_API_KEYS": "a,b", "VOICE_SERVE_API_KEY": "mine"}, "mine"),
    ],
)
def test_the_client_shows_its_own_key_or_the_first_of_the_servers(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], key: str
):
    for name in ("VOICE_SERVE_API_KEY", "VOICE_SERVE_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert client_api_key() == key


# --- what the application refuses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", None])
def test_on_loopback_no_key_is_needed(host: str | None):
    check_access(Access(), frozenset(), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "voice.example", ""])
def test_beyond_loopback_keys_are_needed_or_the_config_says_that_none_are(host: str):
    with pytest.raises(ConfigError) as caught:
        check_access(Access(api_keys_env="MY_KEYS"), frozenset(), host)
    assert "MY_KEYS" in str(caught.value)
    assert "auth: none" in str(caught.value)
    check_access(Access(), frozenset({"k"}), host)
    check_access(Access(auth="none"), frozenset(), host)


def test_a_store_whose_client_is_missing_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serve_app.app.find_spec", lambda name: None)
    check_store(Resume())
    with pytest.raises(ConfigError, match=r"voice-serve\[redis\]"):
        check_store(Resume(store="redis"))


def test_a_name_is_not_taken_for_loopback():
    assert not is_loopback("127.0.0.1.evil.test")
    assert not is_loopback("localhost.evil.test")


def test_auto_is_refused_on_many_nodes_with_the_engines_to_write():
    config = Config.parse({"llm": {"engine": "llama_cpp"}})
    refuse_auto_on_many_nodes(config, 1)
    with pytest.raises(ConfigError) as caught:
        refuse_auto_on_many_nodes(config, 3)
    text = str(caught.value)
    assert "this cluster has 3" in text
    assert "stt.engine: faster_whisper or pocketsphinx" in text
    assert "tts.engine: kokoro or espeak" in text
    assert "llm.engine" not in text
    named = {"stt": {"engine": "pocketsphinx"}, "llm": {"engine": "llama_cpp"}, "tts": {"engine": "espeak"}}
    refuse_auto_on_many_nodes(Config.parse(named), 3)


def test_more_threads_than_cores_are_warned_of(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)  # Serve's logger may not hand on what it is told
    try:
        warn_of_too_many_threads(
            SttOptions(engine="faster_whisper", threads=5000), LlmOptions(threads=1), TtsOptions(threads=1)
        )
        assert "add up to 5002" in caplog.text
        assert "stt.threads, llm.threads or tts.threads" in caplog.text
        caplog.clear()
        warn_of_too_many_threads(SttOptions(engine="scripted", threads=5000))
        assert caplog.text == ""
    finally:
        logger.removeHandler(caplog.handler)


def built(monkeypatch: pytest.MonkeyPatch, **turn_taking: Any) -> tuple[Any, ...]:
    """What the application gives its ingress, after the stages."""
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(app, "_listening_host", lambda: None)
    monkeypatch.setattr(app, "Ingress", SimpleNamespace(bind=lambda *args: given.append(args)))
    stages = {stage: {"engine": "scripted"} for stage in ("stt", "llm", "tts")}
    app.build({**stages, "turn_taking": turn_taking})
    [args] = given
    return args[-2:]


def test_the_second_opinion_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert built(monkeypatch) == (None, None)


def test_the_second_opinion_that_is_asked_for_is_loaded_in_the_ingress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smart_turn, "model_path", lambda: Path("smart-turn-v3.2-cpu.onnx"))
    info, load = built(monkeypatch, smart_turn=True)
    assert (info.stage, info.engine, info.model, info.remedy) == (
        "turn",
        "smart_turn",
        "smart-turn-v3.2-cpu",
        "",
    )
    assert load is smart_turn.load


def test_a_second_opinion_that_is_not_installed_is_said_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(smart_turn, "model_path", lambda: None)
    monkeypatch.setattr(app.log, "propagate", True)
    info, load = built(monkeypatch, smart_turn=True)
    assert load is None
    assert "make turn" in info.remedy
    assert any("make turn" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("llm", "reads_ahead"),
    [
        ({"engine": "llama_cpp"}, True),
        ({"engine": "llama_cpp", "prefill": False}, False),
        ({"engine": "openai_compatible"}, False),
        ({"engine": "openai_compatible", "prefill": True}, True),
    ],
)
def test_a_prompt_is_read_ahead_where_nobody_else_counts_its_tokens(
    llm: dict[str, object], reads_ahead: bool
) -> None:
    assert (Config.parse({"llm": llm}).parameters().prefill_after_s > 0) == reads_ahead
