"""Files of sound: any format to what a transcriber hears, and a synthesizer's chunks to a file that grows.

PyAV (FFmpeg's libraries, installed through faster-whisper) does both; it is imported where it is first needed. All of it
is work for a thread: encoding takes 4 to 13 ms a second of audio, one core (mp3 the most).

Files of strangers are opened by the demuxers of `_READABLE` alone: FFmpeg's playlists (concat, HLS) would open other
files and addresses.
"""

import io
import struct
import threading
from typing import Literal, Protocol

import numpy as np

from deployments.interfaces import TRANSCRIBER_RATE, SpeechChunk
from serve_app.audio.pcm import Samples, decode_pcm, pcm_samples, to_samples
from serve_app.audio.resampling import StreamingResampler

SpeechFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
SPEECH_RATE = 24_000
"""Of all speech that is given out."""
MEDIA_TYPES: dict[SpeechFormat, str] = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
MAX_AUDIO_S = 4 * 3600
"""Of one file: 25 MB of silence in FLAC are weeks; four hours are 460 MB of samples."""

_READABLE = "aac,ac3,aiff,amr,au,avi,caf,flac,flv,matroska,webm,mov,mp4,m4a,3gp,mp3,mpeg,mpegts,ogg,w64,wav"


class Undecodable(Exception):
    """No sound can be got out of the file; the message says why."""


def decode(data: bytes, cancelled: threading.Event, max_s: float = MAX_AUDIO_S) -> bytes:
    """The first audio track as 16-bit mono at 16 kHz; what comes after a damaged place is decoded too.

    Raises Undecodable. Returns early, with less, once `cancelled` is set.
    """
    import av

    pieces: list[bytes] = []
    longest, length = int(max_s * TRANSCRIBER_RATE) * 2, 0
    options = {"format_whitelist": _READABLE, "protocol_whitelist": "none"}
    try:
        with av.open(io.BytesIO(data), "r", container_options=options, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise Undecodable("there is no audio in it")
            resampler = av.AudioResampler("s16", "mono", TRANSCRIBER_RATE)
            for packet in container.demux(container.streams.audio[0]):
                try:
                    frames = packet.decode()
                except av.InvalidDataError:
                    continue
                for frame in [out for decoded in frames for out in resampler.resample(decoded)]:
                    pieces.append(frame.to_ndarray().tobytes())
                    length += len(pieces[-1])
                if length > longest:
                    raise Undecodable(f"it is longer than {max_s:g} s")
                if cancelled.is_set():
                    break
            if pieces:
                pieces += [frame.to_ndarray().tobytes() for frame in resampler.resample(None)]
    except (av.FFmpegError, ValueError) as error:
        raise Undecodable("it is damaged, or of a format that is not known") from error
    if not pieces:
        raise Undecodable("there is no audio in it")
    return b"".join(pieces)


class Encoder(Protocol):
    def push(self, samples: Samples) -> bytes: ...

    def close(self) -> bytes: ...


class SpeechFile:
    """A synthesizer's chunks as one growing file at `SPEECH_RATE`, mono."""

    def __init__(self, file_format: SpeechFormat) -> None:
        self._encoder = _encoder(file_format)
        self._resampler: StreamingResampler | None = None

    def push(self, chunk: SpeechChunk) -> bytes:
        """The bytes that this chunk completes; some formats keep a part of it until the next."""
        if chunk.sample_rate == SPEECH_RATE:
            return self._encoder.push(pcm_samples(chunk.pcm))
        if self._resampler is None:
            self._resampler = StreamingResampler(chunk.sample_rate, SPEECH_RATE)
        return self._encoder.push(to_samples(self._resampler.push(decode_pcm(chunk.pcm))))

    def close(self) -> bytes:
        """The rest of the file."""
        rest = b"" if self._resampler is None else self._encoder.push(to_samples(self._resampler.flush()))
        return rest + self._encoder.close()


def _encoder(file_format: SpeechFormat) -> Encoder:
    match file_format:
        case "pcm":
            return _Plain(b"")
        case "wav":
            return _Plain(_wav_header())
        case "mp3":
            return _Av("mp3", "libmp3lame", 64_000, {})
        case "opus":
            # A page holds 1 s of sound by default, and so much would be waited for.
            return _Av("ogg", "libopus", 32_000, {"page_duration": "100000"})
        case "aac":
            return _Av("adts", "aac", 64_000, {})
        case "flac":
            return _Av("flac", "flac", None, {})


class _Plain:
    def __init__(self, header: bytes) -> None:
        self._header = header

    def push(self, samples: Samples) -> bytes:
        header, self._header = self._header, b""
        return header + samples.astype("<i2", copy=False).tobytes()

    def close(self) -> bytes:
        return self.push(np.zeros(0, dtype=np.int16))


def _wav_header() -> bytes:
    """Of a stream whose length nobody knows yet: both lengths are the largest (FFmpeg writes the same to a pipe)."""
    unknown = 0xFFFFFFFF
    layout = struct.pack("<IHHIIHH", 16, 1, 1, SPEECH_RATE, SPEECH_RATE * 2, 2, 16)
    return b"RIFF" + struct.pack("<I", unknown) + b"WAVEfmt " + layout + b"data" + struct.pack("<I", unknown)


class _Sink:
    """A file that can only be written to: FFmpeg then writes nothing that it would have to correct."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class _Av:
    def __init__(self, container: str, codec: str, bit_rate: int | None, options: dict[str, str]) -> None:
        import av
        from av.audio.stream import AudioStream

        self._frame = av.AudioFrame
        self._sink = _Sink()
        self._file = av.open(self._sink, "w", format=container, options=options)
        stream = self._file.add_stream(codec, rate=SPEECH_RATE, layout="mono")
        assert isinstance(stream, AudioStream)
        self._stream = stream
        if bit_rate is not None:
            self._stream.bit_rate = bit_rate
        self._written = 0

    def push(self, samples: Samples) -> bytes:
        if not len(samples):
            return b""
        frame = self._frame.from_ndarray(np.ascontiguousarray(samples)[np.newaxis], "s16", "mono")
        frame.sample_rate = SPEECH_RATE
        frame.pts = self._written
        self._written += len(samples)
        self._file.mux(self._stream.encode(frame))
        return self._sink.take()

    def close(self) -> bytes:
        self._file.mux(self._stream.encode(None))
        self._file.close()
        return self._sink.take()
