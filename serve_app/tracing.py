"""A turn as OpenTelemetry spans: from the last speech to the first sound, with its stages inside.

The switch is Serve's own, at the head of a Serve config, and off by default:

    tracing_config: {enabled: true, sampling_ratio: 1.0}    # to files beside the logs, or exporter_import_path: your own

Serve then makes a span of each session and of each call of an engine; the turns are the session's children beside them.
Where it is off there is no tracer provider, and what is made here is nothing.
"""

from itertools import accumulate, pairwise

from opentelemetry import trace

from .conversation.commands import ResponseDone

_NS = 1_000_000_000


def trace_turn(session_id: str, done: ResponseDone, *, now: float, unix_ns: int) -> None:
    """Spans of an answer that is over. `now`: on the clock of its latency, the moment that is `unix_ns` since 1970."""
    latency = done.latency
    if latency is None:
        return
    stages = latency.stages()
    total = stages.pop("total")
    began_ns = unix_ns - int((now - latency.last_speech_at) * _NS)
    tracer = trace.get_tracer("voice_serve")
    attributes: dict[str, str | int] = {
        "voice.session": session_id,
        "voice.response": done.response_id,
        "voice.outcome": done.outcome,
        "voice.output_tokens": done.usage.output_tokens,
    }
    turn = tracer.start_span("turn", start_time=began_ns, attributes=attributes)
    inside = trace.set_span_in_context(turn)
    cuts = [began_ns + int(seconds * _NS) for seconds in accumulate(stages.values(), initial=0.0)]
    for name, (start, end) in zip(stages, pairwise(cuts), strict=True):
        if end > start:  # a stage that was done ahead of its turn took nothing of it
            tracer.start_span(name, context=inside, start_time=start).end(end_time=end)
    turn.end(end_time=began_ns + int(total * _NS))
