import pytest

from serve_app.conversation.interruption import AgentState, InterruptionPolicy, Verdict
from serve_app.conversation.turn_taking import samples_of


@pytest.mark.parametrize("agent", [AgentState.SPEAKING, AgentState.THINKING])
def test_over_an_agent_that_has_something_to_say_only_speech_of_the_set_length_takes_the_floor(
    agent: AgentState,
) -> None:
    policy = InterruptionPolicy(96)
    assert policy.judge(samples_of(96) - 1, agent) is Verdict.IGNORE
    assert policy.judge(samples_of(96), agent) is Verdict.INTERRUPT


def test_any_speech_takes_the_floor_from_an_idle_agent() -> None:
    assert InterruptionPolicy(96).judge(1, AgentState.IDLE) is Verdict.INTERRUPT
