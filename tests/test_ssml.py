import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.interfaces import BadRequest, SpeechChunk, WordTime
from deployments.ssml import Break, Piece, Speech, parse, synthesize_ssml


@pytest.mark.parametrize(
    ("inner", "pieces"),
    [
        ("Hello.", [Speech("Hello.")]),
        ("", []),
        ("  \n ", []),
        ("a &lt; b &amp; c &#33;", [Speech("a < b & c !")]),
        ('a<break time="500ms"/>b', [Speech("a"), Break(0.5), Speech("b")]),
        ('a<break time="1.5s"/>b', [Speech("a"), Break(1.5), Speech("b")]),
        ('a<break strength="x-strong"/>b', [Speech("a"), Break(1.0), Speech("b")]),
        ("a<break/>b", [Speech("a"), Break(0.5), Speech("b")]),
        ('a <prosody rate="slow">b</prosody> c', [Speech("a "), Speech("b", 0.75), Speech(" c")]),
        ('<prosody rate="80%">a</prosody>', [Speech("a", 0.8)]),
        ('<prosody rate="1.5">a</prosody>', [Speech("a", 1.5)]),
        ('<prosody rate="2"><prosody rate="50%">a</prosody>b</prosody>', [Speech("a"), Speech("b", 2.0)]),
        ('the <sub alias="World Wide Web">WWW</sub>!', [Speech("the World Wide Web!")]),
        ('a <phoneme ph="təˈmeɪtoʊ">tomato</phoneme>.', [Speech("a [tomato](/təˈmAtO/).")]),
        ('<phoneme alphabet="ipa" ph="/rɪˈgrɛt/">x</phoneme>', [Speech("[x](/ɹɪˈɡɹɛt/)")]),
        ("so <emphasis>very big</emphasis>", [Speech("so [very big](+1)")]),
        ('<emphasis level="strong">no</emphasis>', [Speech("[no](+2)")]),
        ('<emphasis level="reduced">no</emphasis>', [Speech("[no](-1)")]),
        ('<emphasis level="none">no</emphasis>', [Speech("no")]),
        ("<emphasis>a [b](c)</emphasis>", [Speech("[a  b  c](+1)")]),
        ("<emphasis>a<break/>b</emphasis>", [Speech("[a](+1)"), Break(0.5), Speech("[b](+1)")]),
        ("<s>One</s><s>Two?</s>", [Speech("One. Two? ")]),
        ("<p>One</p><p>Two</p>", [Speech("One. "), Break(0.5), Speech("Two. ")]),
        ("Zero<p><s>One</s></p>Two", [Speech("Zero. "), Break(0.5), Speech("One. "), Break(0.5), Speech("Two")]),
    ],
)  # fmt: skip
def test_ssml_becomes_pieces(inner: str, pieces: list[Piece]) -> None:
    head = (
        '<?xml version="1.0"?><speak version="1.1" xmlns="http://www.w3.org/2001/10/synthesis" xml:lang="en">'
    )
    assert parse(f"{head}{inner}</speak>") == pieces


@pytest.mark.parametrize(
    ("ssml", "reason"),
    [
        ("", "no element"),
        ("plain text", "line 1"),
        ("<speak>a", "no element found"),
        ("<speak>\n\n<b>a</speak>", "line 3: <b> is not supported"),
        ("<speak>\n<p>a</speak>", "line 2: mismatched tag"),
        ("<speak>&nbsp;</speak>", "undefined entity"),
        ("<p>a</p>", "<speak> is the root"),
        ("<speak><speak/></speak>", "<speak> is the root"),
        ('<speak><voice name="x">a</voice></speak>', "<voice> is not supported"),
        ('<speak><say-as interpret-as="date">a</say-as></speak>', "<say-as> is not supported"),
        ('<speak><audio src="file:///etc/passwd"/></speak>', "<audio> is not supported"),
        ('<speak><prosody pitch="high">a</prosody></speak>', "'pitch' of <prosody> is not supported"),
        ('<speak><prosody rate="quick">a</prosody></speak>', "one of x-slow"),
        ('<speak><prosody rate="0">a</prosody></speak>', "0.25 to 4"),
        ('<speak><prosody rate="-1">a</prosody></speak>', "one of"),
        ('<speak><prosody rate="4"><prosody rate="4">a</prosody></prosody></speak>', "not 16"),
        ('<speak><break time="1"/></speak>', "500ms or 1.5s"),
        ('<speak><break time="11s"/></speak>', "at most 10 s"),
        ('<speak><break time="9999999999999ms"/></speak>', "at most 10 s"),
        ('<speak><break strength="huge"/></speak>', "one of none"),
        ("<speak><break>a</break></speak>", "<break> is empty"),
        ("<speak><sub>a</sub></speak>", "no alias"),
        ('<speak><sub alias="a"><s>b</s></sub></speak>', "<sub> holds no other element"),
        ("<speak><phoneme>a</phoneme></speak>", "needs ph"),
        ('<speak><phoneme ph="a)(b">a</phoneme></speak>', "needs ph"),
        ('<speak><phoneme alphabet="x-sampa" ph="a">a</phoneme></speak>', "'x-sampa' is not supported"),
        ("<speak><emphasis><s>a</s></emphasis></speak>", "in <emphasis>"),
        ("<speak>" + "<p>" * 40 + "</p>" * 40 + "</speak>", "too deeply nested"),
        ("<speak>\ud800</speak>", "not Unicode"),
        ("<speak>a\0b</speak>", "line 1"),
    ],
)
def test_what_is_not_understood_says_where_and_why(ssml: str, reason: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(reason)) as raised:
        parse(ssml)
    assert raised.value.stage == "tts"
    assert "SSML, line " in raised.value.message


@pytest.mark.parametrize(
    "head",
    [
        '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE speak SYSTEM "http://127.0.0.1/x.dtd">',
        "<!DOCTYPE speak>",
    ],
)
def test_a_document_type_is_refused_before_it_is_read(head: str) -> None:
    with pytest.raises(BadRequest, match="document type"):
        parse(f"{head}<speak>&b;</speak>")


@given(
    st.lists(
        st.sampled_from(["<speak>", "</speak>", "<p>", "</p>", "<s>", "</s>", "<break/>", "a", " ", "&", "<emphasis>", "</emphasis>",
                         '<prosody rate="fast">', "</prosody>", '<sub alias="b">', "</sub>", "<!--", "-->", "<![CDATA[x]]>"])
    ).map("".join)
)  # fmt: skip
def test_nothing_but_a_bad_request_is_raised(ssml: str) -> None:
    try:
        pieces = parse(f"<speak>{ssml}</speak>")
    except BadRequest:
        return
    assert all(not isinstance(piece, Speech) or piece.text.strip() for piece in pieces)


# --- spoken ---------------------------------------------------------------------------------------------------------


class Voice:
    """A second of sound a word at speed 1, in one chunk."""

    voices = ()

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, float]] = []
        self.is_closed = False

    async def synthesize(self, text: str, *, voice: str, speed: float) -> AsyncIterator[SpeechChunk]:
        self.calls.append((text, voice, speed))
        times = [WordTime(*match.span(), i, i + 1) for i, match in enumerate(re.finditer(r"\w+", text))]
        try:
            for time in times:
                yield SpeechChunk(b"\1\0" * 10, 10, (time,))
        finally:
            self.is_closed = True


async def spoken(pieces: list[Piece]) -> tuple[Voice, list[SpeechChunk]]:
    voice = Voice()
    return voice, [chunk async for chunk in synthesize_ssml(voice, pieces, voice="v", speed=1.2)]


async def test_breaks_are_silence_and_rates_are_speed() -> None:
    pieces = [Break(0.5), Speech("one two "), Break(1.0), Break(0.5), Speech("three", 0.5), Break(0.2)]
    voice, chunks = await spoken(pieces)
    assert voice.calls == [("one two ", "v", 1.2), ("three", "v", 0.6)]
    heard = b"".join(chunk.pcm for chunk in chunks)
    assert heard == bytes(10) + b"\1\0" * 20 + bytes(30) + b"\1\0" * 10 + bytes(4)
    assert {chunk.sample_rate for chunk in chunks} == {10}


async def test_word_times_count_over_all_pieces() -> None:
    _, chunks = await spoken([Break(0.5), Speech("one two "), Break(1.0), Speech("three", 0.5)])
    text = "one two three"
    words = [(text[w.start_char : w.end_char], w.start_s, w.end_s) for c in chunks for w in c.words]
    assert words == [("one", 0.5, 1.5), ("two", 1.5, 2.5), ("three", 3.5, 4.5)]


async def test_nothing_but_a_break_is_silence() -> None:
    _, chunks = await spoken([Break(1.5)])
    assert sum(len(chunk.pcm) for chunk in chunks) == 2 * 36_000
    assert (await spoken([]))[1] == []


async def test_a_text_that_cannot_be_said_does_not_lose_the_pause() -> None:
    _, chunks = await spoken([Speech("one"), Break(1.0), Speech("…"), Break(1.0), Speech("two")])
    assert len(chunks[0].pcm) + 40 == sum(len(chunk.pcm) for chunk in chunks[:-1])
    assert chunks[-1].words[0].start_s == 3.0


async def test_leaving_early_stops_the_engine() -> None:
    voice = Voice()
    stream = cast("Any", synthesize_ssml(voice, [Speech("one two three")], voice="v", speed=1.0))
    async with aclosing(stream):
        await anext(stream)
    assert voice.is_closed
