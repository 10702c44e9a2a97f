"""The process in which pocketsphinx decodes: one decoder, driven over stdin and stdout by `pocketsphinx.py`.

Apart from the replica because the decoder holds the interpreter's lock all through a call, seconds for a long
utterance, in which an event loop could not even pass on a cancel; and because a process can be stopped half-way. Run
as a file of its own; imports nothing of the project. It ends when its stdin does, so it cannot outlive the replica.

Both ways a message is a length (uint32, little-endian) and that many bytes. An empty message says that the model is
loaded; after that each utterance (16-bit mono PCM at 16 kHz) is answered by its words in UTF-8. The one argument is
how far the process gives way to others.
"""

import os
import struct
import sys
from typing import BinaryIO

LENGTH = struct.Struct("<I")


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    import pocketsphinx

    decoder = pocketsphinx.Decoder(loglevel="FATAL")
    _answer(answers, "")
    while header := requests.read(LENGTH.size):
        pcm = requests.read(LENGTH.unpack(header)[0])
        decoder.start_utt()
        # full_utt normalises by this utterance alone. Decoding in slices carries the cepstral mean over from one
        # speaker to the next: word error rate 0.42 against 0.35 on the 26 clips of shared/audio/speech, and a
        # transcript that depends on the calls before it.
        decoder.process_raw(pcm, no_search=False, full_utt=True)
        decoder.end_utt()
        hypothesis = decoder.hyp()
        words = hypothesis.hypstr.split() if hypothesis else []
        _answer(answers, " ".join(word for word in words if word[0] not in "<[+"))  # the rest are fillers


def _answer(answers: BinaryIO, text: str) -> None:
    data = text.encode()
    answers.write(LENGTH.pack(len(data)) + data)
    answers.flush()


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(int(sys.argv[1]))
    serve(sys.stdin.buffer, sys.stdout.buffer)
