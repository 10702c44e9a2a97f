"""`/v1/audio/transcriptions`: the form, the pieces of a long file, and nothing from nothing."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingress.asgi import server_of
from rest.wire import asked, events_in, file_of, http_of, silence, speech
from session.calls import scripted

from deployments.interfaces import BadRequest, Transcript
from deployments.options import ScriptedStt
from serve_app.rest.transcriptions import MAX_FILE_BYTES, PIECE_FRAMES, cut
from serve_app.server import VoiceServer

PATH = "/v1/audio/transcriptions"
FRAME = 512


class Recording:
    def __init__(self, *texts: str) -> None:
        self.texts = list(texts or ["words"])
        self.asked: list[tuple[float, str | None, str | None]] = []
        """Seconds, language, prompt."""

    async def transcribe(
        self, pcm: bytes, *, language: str | None, prompt: str | None, **_: Any
    ) -> Transcript:
        if language == "tlh":
            raise BadRequest("knows no Klingon", stage="stt", engine="recording")
        self.asked.append((len(pcm) / 32_000, language, prompt))
        return Transcript(self.texts[(len(self.asked) - 1) % len(self.texts)], language)


def server(transcriber: Any = None, **config: Any) -> VoiceServer:
    engines = scripted(stt=ScriptedStt(latency_s=0), **({"transcriber": transcriber} if transcriber else {}))
    return server_of(engines=engines, **config)


async def post(where: VoiceServer, audio: Any = None, **fields: Any) -> Any:
    data = file_of(speech(1)) if audio is None else audio if isinstance(audio, bytes) else file_of(audio)
    async with http_of(where) as http:
        return await http.post(PATH, files={"file": ("a.wav", data)}, data=fields)


async def test_the_transcriber_gets_the_language_and_the_prompt():
    engine = Recording()
    response = await post(server(engine), model="whisper-1", language="de", prompt="Grüße", temperature="0.2")
    assert response.json() == {"text": "words", "usage": {"type": "duration", "seconds": 1}}
    assert engine.asked == [(1.0, "de", "Grüße")]


async def test_fields_that_are_empty_say_nothing():
    engine = Recording()
    await post(server(engine), language="", prompt="", response_format="", stream="")
    assert engine.asked == [(1.0, None, None)]


async def test_plain_text():
    response = await post(server(Recording()), response_format="text")
    assert response.text == "words\n"
    assert response.headers["content-type"].startswith("text/plain")


async def test_verbose_json():
    audio = np.concatenate([speech(20), silence(2), speech(20)])
    response = await post(
        server(Recording("one", "two")), audio, response_format="verbose_json", language="en"
    )
    body = response.json()
    assert (body["text"], body["language"], body["duration"]) == ("one two", "en", 42.0)
    assert [(s["id"], s["text"]) for s in body["segments"]] == [(0, "one"), (1, "two")]
    assert body["segments"][0]["end"] == pytest.approx(21, abs=0.1)
    assert body["segments"][1]["end"] == 42.0


@pytest.mark.parametrize("kind", ["silence", "quiet"])
async def test_nothing_comes_from_nothing(kind: str):
    audio = silence(3) if kind == "silence" else 0.02 * speech(3)
    engine = Recording("Thank you for watching.")
    for fields in ({}, {"response_format": "verbose_json"}):
        body = (await post(server(engine), audio, **fields)).json()
        assert (body["text"], body.get("segments", [])) == ("", [])
    [done] = events_in((await post(server(engine), audio, stream="true")).text)
    assert done == {"type": "transcript.text.done", "text": ""}
    assert engine.asked == []


async def test_a_silent_piece_of_a_long_file_is_not_transcribed():
    engine = Recording("one", "two")
    audio = np.concatenate([speech(5), silence(60), speech(5)])
    assert (await post(server(engine), audio)).json()["text"] == "one two"
    assert len(engine.asked) == 2
    assert max(seconds for seconds, _, _ in engine.asked) <= 30


async def test_pieces_without_words_leave_no_gap():
    audio = np.concatenate([speech(20), silence(2), speech(20), silence(2), speech(20)])
    assert (await post(server(Recording("one", " ", "three")), audio)).json()["text"] == "one three"


async def test_a_long_file_is_given_as_it_is_transcribed():
    audio = np.concatenate([speech(20), silence(2), speech(20)])
    response = await post(server(Recording("one", "two")), audio, stream="true")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events_in(response.text) == [
        {"type": "transcript.text.delta", "delta": "one"},
        {"type": "transcript.text.delta", "delta": " two"},
        {"type": "transcript.text.done", "text": "one two"},
    ]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"response_format": "srt"}, "not_supported", "response_format"),
        ({"response_format": "vtt"}, "not_supported", "response_format"),
        ({"response_format": "midi"}, "invalid_value", "response_format"),
        ({"temperature": "1.5"}, "invalid_value", "temperature"),
        ({"temperature": "warm"}, "invalid_value", "temperature"),
        ({"stream": "perhaps"}, "invalid_value", "stream"),
        ({"timestamp_granularities[]": ["segment", "word"]}, "not_supported", "timestamp_granularities"),
        ({"include[]": ["logprobs"]}, "not_supported", "include"),
        ({"language": "tlh"}, "engine_bad_request", None),
    ],
)
async def test_what_cannot_be_done_is_refused(fields: dict[str, Any], code: str, param: str | None):
    response = await post(server(Recording()), **fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)


async def test_times_of_segments_may_be_asked_for():
    response = await post(server(Recording()), **{"timestamp_granularities[]": ["segment"]})
    assert response.status_code == 200


async def test_a_form_without_a_file_is_refused():
    async with http_of(server()) as http:
        nothing = await http.post(PATH, files={"other": ("a.wav", b"x")})
        text = await http.post(PATH, files={"file": (None, "just text")})
    for response in (nothing, text):
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "file"


async def test_a_file_of_25_mb_is_taken_and_a_larger_one_is_not():
    wav = file_of(speech(1))
    response = await post(server(Recording()), wav + bytes(MAX_FILE_BYTES - len(wav)))
    assert response.status_code == 200
    for extra in (1, 10**6):
        response = await post(server(Recording()), wav + bytes(MAX_FILE_BYTES - len(wav) + extra))
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


async def test_a_client_that_does_not_say_how_much_it_sends_is_stopped_at_the_limit():
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    async with asked(server(), PATH, b"", "multipart/form-data; boundary=x") as (exchange, _):
        exchange.messages.get_nowait()
        exchange.messages.put_nowait({"type": "http.request", "body": head, "more_body": True})
        for _megabyte in range(30):
            exchange.messages.put_nowait({"type": "http.request", "body": bytes(2**20), "more_body": True})
        await exchange.until(lambda: exchange.is_whole)
        assert exchange.messages.qsize() >= 3, "the rest is not read"
    assert exchange.status == 413
    assert json.loads(exchange.body)["error"]["code"] == "request_too_large"


# --- where a long file is cut ---------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.sampled_from([0.0, 0.2, 0.5, 0.9])), max_size=8), st.data()
)
def test_pieces_make_up_the_whole_and_none_is_longer_than_a_window(
    runs: list[tuple[int, float]], data: st.DataObject
):
    probabilities = np.repeat([p for _, p in runs], [n for n, _ in runs]).astype(np.float32)
    samples = max(0, len(probabilities) * FRAME - data.draw(st.integers(0, FRAME - 1)))
    pieces = cut(probabilities, samples)
    edges = [piece.start for piece in pieces] + [samples]
    assert edges[0] == 0
    assert [piece.stop for piece in pieces] == edges[1:]
    assert all(0 < piece.stop - piece.start <= PIECE_FRAMES * FRAME for piece in pieces)
    assert PIECE_FRAMES * FRAME <= 30 * 16_000
    for piece in pieces:
        frames = probabilities[piece.start // FRAME : -(-piece.stop // FRAME)]
        assert piece.speech_probability == frames.max()


def test_a_cut_lies_in_the_middle_of_the_longest_silence():
    probabilities = np.full(1500, 0.9, dtype=np.float32)
    probabilities[400:410] = 0.1
    probabilities[600:640] = 0.1
    first, *_ = cut(probabilities, 1500 * FRAME)
    assert first.stop == 620 * FRAME


def test_unbroken_speech_is_cut_where_it_is_least_like_speech():
    probabilities = np.full(1500, 0.9, dtype=np.float32)
    probabilities[500] = 0.5
    first, *_ = cut(probabilities, 1500 * FRAME)
    assert first.stop == 500 * FRAME
