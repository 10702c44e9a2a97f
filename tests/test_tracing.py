"""The spans of a turn: the total, with the stages one after another inside, placed in time."""

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve_app.conversation.commands import ResponseDone
from serve_app.conversation.events import ItemId, ResponseId, Usage
from serve_app.conversation.timeline import TurnLatency, TurnTimeline
from serve_app.tracing import trace_turn

SECOND = 1_000_000_000
LATENCY = TurnLatency(0.5, 0.0, 0.25, 0.125, 0.25, 0.0625, last_speech_at=100.0)


def answer(latency: TurnLatency | None) -> ResponseDone:
    return ResponseDone(
        response_id=ResponseId("resp_1"),
        item_id=ItemId("item_1"),
        outcome="interrupted",
        text="",
        heard=None,
        usage=Usage(3, 7),
        latency=latency,
    )


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


def named(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_the_stages_lie_in_the_turn_one_after_another(spans: InMemorySpanExporter) -> None:
    trace_turn("abc", answer(LATENCY), now=104.0, unix_ns=1_000 * SECOND)
    found = named(spans)
    assert list(found) == ["endpointing", "llm_ttft", "first_segment", "tts_ttfb", "overhead", "turn"], (
        "a stage that was done ahead of its turn has no span"
    )
    turn = found.pop("turn")
    assert turn.start_time == 996 * SECOND, "the last speech was four seconds ago"
    assert turn.end_time == turn.start_time + int(1.1875 * SECOND)
    at = turn.start_time
    for stage in found.values():
        assert stage.parent == turn.context
        assert stage.start_time == at
        at = stage.end_time
    assert at == turn.end_time
    assert dict(turn.attributes or {}) == {
        "voice.session": "abc",
        "voice.response": "resp_1",
        "voice.outcome": "interrupted",
        "voice.output_tokens": 7,
    }


def test_an_answer_to_no_speech_has_no_span(spans: InMemorySpanExporter) -> None:
    trace_turn("abc", answer(None), now=4.0, unix_ns=SECOND)
    assert not spans.get_finished_spans()


def test_a_turn_belongs_to_the_span_that_it_happens_in(spans: InMemorySpanExporter) -> None:
    with trace.get_tracer("serve").start_as_current_span("session") as session:
        trace_turn("abc", answer(LATENCY), now=104.0, unix_ns=1_000 * SECOND)
    assert named(spans)["turn"].parent == session.get_span_context()


def test_without_a_provider_it_costs_nothing_and_breaks_nothing() -> None:
    trace_turn("abc", answer(LATENCY), now=104.0, unix_ns=1_000 * SECOND)


def test_the_timeline_says_when_the_turn_began() -> None:
    timeline = TurnTimeline()
    timeline.mark("last_speech", 7.5)
    timeline.mark("first_sent", 9.0)
    latency = timeline.latency()
    assert latency is not None
    assert latency.last_speech_at == 7.5
    assert latency.total == 1.5
