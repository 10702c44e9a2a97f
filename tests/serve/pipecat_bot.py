"""A Pipecat voice bot whose ears, mind and voice are the three REST services of a running voice-serve.

pip install "pipecat-ai[openai]"
python pipecat_bot.py http://127.0.0.1:8000/v1          # a bot at ws://127.0.0.1:8765
python pipecat_bot.py http://127.0.0.1:8000/v1 question.wav    # and a caller who says that to it, once
"""

import asyncio
import json
import sys
import time
import wave

import websockets
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.stt import OpenAISTTService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.transports.websocket.server import (
    SingleClientWebsocketServerParams,
    SingleClientWebsocketServerTransport,
)
from pipecat.workers.runner import WorkerRunner

PORT = 8765
IN_RATE, OUT_RATE = 16_000, 24_000


def bot(base_url: str, port: int) -> tuple[PipelineWorker, LLMContext]:
    """The pipeline, and the conversation as it grows."""
    transport = SingleClientWebsocketServerTransport(
        SingleClientWebsocketServerParams(
            audio_in_enabled=True, audio_out_enabled=True, serializer=ProtobufFrameSerializer()
        ),
        host="127.0.0.1",
        port=port,
    )
    server = {"api_key": "none", "base_url": base_url}
    context = LLMContext([{"role": "system", "content": "Be brief."}])
    user, assistant = LLMContextAggregatorPair(
        context, user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    )
    pipeline = Pipeline(
        [
            transport.input(),
            OpenAISTTService(**server),
            user,
            OpenAILLMService(**server),
            OpenAITTSService(**server),
            transport.output(),
            assistant,
        ]
    )
    params = PipelineParams(audio_in_sample_rate=IN_RATE, audio_out_sample_rate=OUT_RATE)
    return PipelineWorker(pipeline, params=params), context


# --- a caller -------------------------------------------------------------------------------------------------------


async def call(port: int, recording: bytes, listen_s: float) -> tuple[bytes, float]:
    """Says the recording at the speed of speech; the first `listen_s` of sound that came back, and how soon it did."""
    wire, heard, said_at, first_at = ProtobufFrameSerializer(), b"", 0.0, 0.0
    async with websockets.connect(f"ws://127.0.0.1:{port}") as socket, asyncio.TaskGroup() as tasks:

        async def speak() -> None:
            nonlocal said_at
            size = IN_RATE // 50 * 2
            chunks = [recording[at : at + size] for at in range(0, len(recording), size)]
            start = time.monotonic()
            for number in range(10**6):
                if number == len(chunks):
                    said_at = time.monotonic()
                pcm = chunks[number] if number < len(chunks) else bytes(size)
                await socket.send(await wire.serialize(OutputAudioRawFrame(pcm, IN_RATE, 1)))
                await asyncio.sleep(max(0.0, start + number / 50 - time.monotonic()))

        speaking = tasks.create_task(speak())
        async with asyncio.timeout(60):
            async for message in socket:
                frame = await wire.deserialize(message)
                if isinstance(frame, InputAudioRawFrame) and any(frame.audio):
                    first_at = first_at or time.monotonic()
                    heard += frame.audio
                if len(heard) >= listen_s * OUT_RATE * 2:
                    break
        speaking.cancel()
    return heard, first_at - said_at


async def main(base_url: str, recording: str | None = None, port: int = PORT) -> None:
    worker, context = bot(base_url, port)
    runner = WorkerRunner()
    await runner.add_workers(worker)
    if recording is None:
        await runner.run()
        return
    with wave.open(recording) as file:
        assert (file.getframerate(), file.getnchannels()) == (IN_RATE, 1)
        pcm = file.readframes(file.getnframes())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.run())
        await asyncio.sleep(3)
        heard, first_sound_s = await call(port, pcm, listen_s=2.5)
        await runner.cancel()
    with wave.open("heard.wav", "wb") as file:
        file.setparams((1, 2, OUT_RATE, 0, "NONE", ""))
        file.writeframes(heard)
    print(json.dumps({"first_sound_s": round(first_sound_s, 2), "messages": context.get_messages()}))


if __name__ == "__main__":
    base_url_, *more = sys.argv[1:]
    asyncio.run(main(base_url_, *more[:1], **({"port": int(more[1])} if len(more) > 1 else {})))
