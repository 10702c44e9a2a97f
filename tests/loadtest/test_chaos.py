"""What the chaos table makes of what its callers lived through, and which faults there are."""

import argparse
from typing import Any

import pytest

from loadtest.chaos import Row, back_after, faults_named, is_bad, line_of, main, parser
from loadtest.faults import FAULTS
from loadtest.ledger import Ledger, TurnSeen


def item(item_id: str, text: str, role: str = "assistant", status: str = "completed") -> dict:
    content = [{"type": "output_audio", "transcript": text}]
    return {"id": item_id, "role": role, "status": status, "content": content}


def test_full_service_is_back_when_the_last_who_noticed_has_an_answer():
    fine, slow = TurnSeen(105.0, 0.6), TurnSeen(103.0, 5.0)
    lost, sorry = TurnSeen(101.0, 10.0, "missed"), TurnSeen(102.0, 1.0, is_apology=True)
    assert back_after(100.0, [fine], 100.0) == 0.0
    assert back_after(100.0, [fine, slow], 100.0) == 8.0
    assert back_after(100.0, [fine, slow, lost], 100.0) == 11.0
    assert back_after(100.0, [sorry], 100.0) == 3.0
    assert back_after(100.0, [sorry], 104.5) == 4.5, "the last session came back later"


def test_an_apology_a_long_wait_and_a_failure_are_noticed():
    assert [
        is_bad(t)
        for t in (TurnSeen(0, 1.0), TurnSeen(0, 3.5), TurnSeen(0, 1, "x"), TurnSeen(0, 1, is_apology=True))
    ] == [
        False,
        True,
        True,
        True,
    ]


def test_a_session_that_begins_anew_has_forgotten_and_one_that_is_resumed_has_not():
    ledger = Ledger("")
    ledger.heard(0, {"type": "session.created", "session": {"id": "a"}})
    ledger.heard(0, {"type": "conversation.item.done", "item": item("1", "hello")})
    ledger.heard(0, {"type": "conversation.item.done", "item": item("2", "hi there")})
    ledger.heard(1, {"type": "session.created", "session": {"id": "a"}})
    cut = item("2", "hi", status="incomplete")
    ledger.heard(1, {"type": "session.resumed", "items": [cut], "lost_items": ["1"]})
    assert (ledger.forgotten, ledger.items) == (0, {"2": None})
    ledger.heard(2, {"type": "session.created", "session": {"id": "b"}})
    assert (ledger.forgotten, ledger.items) == (1, {})


def test_the_text_of_an_answer_that_was_cut_is_left_open():
    ledger = Ledger("")
    ledger.heard(0, {"type": "conversation.item.done", "item": item("1", "all of it")})
    ledger.heard(0, {"type": "conversation.item.done", "item": item("2", "half of", status="incomplete")})
    assert ledger.items == {"1": "all of it", "2": None}
    ledger.heard(0, {"type": "conversation.item.truncated", "item_id": "1"})
    assert ledger.items["1"] is None


def resumed_with(*items: dict, lost: tuple[str, ...] = ()) -> list[bool]:
    """What a caller who knows a question and its answer makes of the history that comes back."""
    ledger = Ledger("")
    completed = {"type": "conversation.item.input_audio_transcription.completed", "item_id": "1"}
    ledger.heard(0, completed | {"transcript": "hello"})
    ledger.heard(0, {"type": "conversation.item.done", "item": item("2", "hi there")})
    ledger.heard(1, {"type": "session.resumed", "items": list(items), "lost_items": list(lost)})
    return ledger.resumptions


def test_the_history_that_comes_back_is_held_against_what_the_caller_knows():
    question, answer = item("1", "hello", "user"), item("2", "hi there")
    assert resumed_with(question, answer) == [True]
    assert resumed_with(question, answer, item("3", "more than was heard of")) == [True]
    assert resumed_with(question, item("2", "hi", status="incomplete")) == [True], "it was being said"
    assert resumed_with(answer, lost=("1",)) == [True], "that the turn was lost has been told"
    assert resumed_with(question) == [False]
    assert resumed_with(question, item("2", "something else")) == [False]
    assert resumed_with(item("1", "hell", "user", "incomplete"), answer) == [False]


def test_items_that_are_gone_are_not_asked_for():
    ledger = Ledger("")
    completed = {"type": "conversation.item.input_audio_transcription.completed", "item_id": "u"}
    ledger.heard(0, completed | {"transcript": ""})
    assert ledger.items == {}
    ledger.heard(0, completed | {"transcript": "hello"})
    ledger.heard(0, {"type": "conversation.item.deleted", "item_id": "u"})
    assert ledger.items == {}


def test_faults_are_chosen_by_name():
    assert [fault.name for fault in faults_named("kill-stt,slow-network")] == ["kill-stt", "slow-network"]
    with pytest.raises(argparse.ArgumentTypeError, match="kill-sst"):
        faults_named("kill-sst")
    assert parser().parse_args([]).only == list(FAULTS)
    for fault in FAULTS:
        assert fault.name in parser().format_help()


def test_without_redis_its_fault_is_passed_over_and_that_is_said(monkeypatch: Any, capsys: Any):
    monkeypatch.setattr("sys.argv", ["chaos", "--only", "restart-redis"])
    monkeypatch.setattr("loadtest.redis_server.shutil.which", lambda _: None)
    monkeypatch.setattr("loadtest.chaos.signal.signal", lambda *_: None)
    main()
    said = " ".join(capsys.readouterr().out.split())
    assert said == "restart-redis not tried: redis-server is not installed (Debian: redis-server)"


def test_the_table_says_what_is_not_over_yet():
    row = Row("kill-stt", "kill -9", 1, "closed with 1006", 0, 20, 2, 3, 4.25, None, 3.0, 19, 20)
    line = line_of(row)
    assert "not yet" in line
    assert "19 of 20" in line
    assert line.endswith("kill -9; closed with 1006")
