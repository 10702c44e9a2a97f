"""What the operator sets for every session."""

from dataclasses import dataclass, field

from deployments.interfaces import Sampling
from serve_app.conversation.parameters import Parameters

from .stages import TimeLimits


@dataclass(frozen=True, slots=True)
class SessionOptions:
    parameters: Parameters = field(default_factory=Parameters)
    time_limits: TimeLimits = field(default_factory=TimeLimits)
    sampling: Sampling = field(default_factory=Sampling)
    chunk_ms: int = 80
    max_session_s: float = 3600.0
    idle_timeout_s: float = 300.0
    send_s: float = 10.0
    max_outbox_bytes: int = 4 * 1024 * 1024
    input_backlog_s: float = 120.0
