"""What a session opens with: what the configuration says, and over it what was kept of a session that is back."""

from dataclasses import replace

from deployments.interfaces import Sampling

from .config import Config
from .conversation.events import Settings
from .realtime.session_config import SessionConfig, listening_only
from .session.options import SessionOptions
from .session.resumption import ResumeOptions, SessionSnapshot
from .session.stages import TimeLimits


def session_options(config: Config, *, judges_turns: bool = False) -> SessionOptions:
    limits, times, llm = config.limits, config.timeouts, config.llm
    return SessionOptions(
        parameters=replace(config.parameters(), judges_turns=judges_turns),
        time_limits=TimeLimits(
            times.stt_s, times.llm_first_token_s, times.llm_gap_s, times.tts_first_audio_s, times.tts_gap_s
        ),
        sampling=Sampling(llm.max_tokens, llm.temperature, llm.top_p),
        chunk_ms=config.playout.chunk_ms,
        max_session_s=limits.max_session_s,
        idle_timeout_s=limits.idle_timeout_s,
        send_s=times.send_s,
        max_outbox_bytes=limits.max_outbox_bytes,
        input_backlog_s=limits.input_backlog_s,
    )


def listening_only_options(options: SessionOptions) -> SessionOptions:
    """Of a session that never answers: there is no prompt to read ahead."""
    return replace(options, parameters=replace(options.parameters, prefill_after_s=0.0))


def resume_options(config: Config) -> ResumeOptions:
    return ResumeOptions(
        within_s=config.resume.within_s, max_snapshot_bytes=config.resume.max_snapshot_kb * 1024
    )


def conversation_config(config: Config, model: str, voices: frozenset[str] | None) -> SessionConfig:
    """`model`: the client's name for it. `voices`: those that it may name; None: any, or none is known yet."""
    settings = Settings(
        instructions=config.llm.system_prompt,
        turn_detection=config.server_vad(),
        voice=config.tts.voice,
        speed=config.tts.speed,
        language=config.stt.language,
    )
    return SessionConfig(
        settings=settings,
        model=model,
        transcription_model=config.stt.engine,
        voices=voices,
        mixes_voices=config.tts.mixes_voices,
        default_voice=config.tts.voice,
        default_vad=config.server_vad(),
    )


def listening_config(config: Config) -> SessionConfig:
    """Of a session that only transcribes: neither the language model nor the voice is asked for anything."""
    vad = listening_only(config.server_vad())
    return SessionConfig(
        settings=Settings(turn_detection=vad, language=config.stt.language),
        transcription_model=config.stt.engine,
        default_vad=vad,
        kind="transcription",
    )


def as_kept(fresh: SessionConfig, kept: SessionSnapshot) -> SessionConfig:
    """What the client had set goes on; what the server offers is as fresh as for anyone."""
    return replace(
        fresh,
        settings=kept.conversation.settings,
        input_format=kept.input_format,
        output_format=kept.output_format,
        model=kept.model,
    )
