"""The endpoints: who may ask, what was asked, and which answer it gets."""

import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from deployments.interfaces import EngineError, Sampling
from serve_app.realtime.errors import ProtocolError
from serve_app.realtime.session_config import SessionConfig, check_voice
from serve_app.session.stages import Engines, TimeLimits

from . import chat, errors, speech, transcriptions
from .bodies import form_body, json_body
from .chat import ChatRequest, Completion
from .errors import ApiError
from .media import MEDIA_TYPES
from .speech import SpeechRequest
from .streams import DONE, SSE, events, streamed, while_connected
from .transcriptions import TranscriptionRequest

log = logging.getLogger("voice_serve.rest")

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Options:
    time_limits: TimeLimits = field(default_factory=TimeLimits)
    sampling: Sampling = field(default_factory=Sampling)
    """Where a request says nothing."""
    context_tokens: int | None = None
    """A request that asks for more tokens is given so many; None: the engine decides."""
    mixes_voices: bool = False
    """A request may name a mixture of voices."""
    voice: str = ""
    """Where a request names none, or one of OpenAI's."""
    speed: float = 1.0
    speech_threshold: float = 0.5
    """Probability from which a frame of a file counts as speech."""


@dataclass(frozen=True, slots=True)
class Server:
    """What the endpoints ask of the server that they are a part of."""

    engines: Engines
    voices: Callable[[], Awaitable[frozenset[str] | None]]
    """None: any name will do, or none is known yet."""
    models: Callable[[], Awaitable[dict[str, object]]]
    refusal: Callable[[Request], ApiError | None]
    """Why a caller is not let in."""


def router(server: Server, options: Options) -> APIRouter:
    endpoints = Endpoints(server, options)
    routes = APIRouter()
    for method, path, handler in (
        ("POST", "/v1/audio/transcriptions", endpoints.transcriptions),
        ("POST", "/v1/audio/speech", endpoints.speech),
        ("GET", "/v1/audio/voices", endpoints.voices),
        ("POST", "/v1/chat/completions", endpoints.chat_completions),
        ("GET", "/v1/models", endpoints.models),
        ("GET", "/v1/models/{name:path}", endpoints.model),
    ):
        routes.add_route(path, _answered(handler, server.refusal), methods=[method])
    return routes


def _answered(handle: Handler, refusal: Callable[[Request], ApiError | None]) -> Handler:
    """`handle` for those who are let in; whatever it raises is an answer too."""

    async def answered(request: Request) -> Response:
        try:
            if (refused := refusal(request)) is not None:
                raise refused
            return await handle(request)
        except ApiError as error:
            return error.response()
        except EngineError as error:
            return errors.of_engine(error).response()
        except ProtocolError as error:
            return errors.of_protocol(error).response()
        except HTTPException as error:
            return errors.of_http(error, request.url.path).response()
        except ClientDisconnect:
            return Response(status_code=499)  # for the access log: nobody is there to read it
        except Exception:
            log.exception("a request failed", extra={"path": request.url.path})
            return ApiError(500, "The server has failed; its log says why.", code="internal_error").response()

    return answered


class Endpoints:
    def __init__(self, server: Server, options: Options) -> None:
        self._server = server
        self._engines = server.engines
        self._options = options

    async def transcriptions(self, request: Request) -> Response:
        async with form_body(request, transcriptions.MAX_FORM_BYTES) as form:
            try:
                wanted = TranscriptionRequest.model_validate(transcriptions.fields_of(form))
            except ValidationError as error:
                raise errors.of_validation(error) from None
            wanted.refuse_unbuilt()
            data = await transcriptions.file_of(form)
        options = self._options
        async with while_connected(request.receive):
            heard = await transcriptions.hear(data, self._engines.make_detector)
        del data
        segments = transcriptions.transcribed(
            self._engines.transcriber, heard, wanted, options.time_limits, options.speech_threshold
        )
        if wanted.stream:
            return await streamed(request, events(transcriptions.as_events(segments)), SSE)
        async with while_connected(request.receive):
            body = await transcriptions.as_json(segments, heard, wanted)
        if wanted.response_format == "text":
            return PlainTextResponse(f"{body['text']}\n")
        return JSONResponse(body)

    async def speech(self, request: Request) -> Response:
        wanted = await json_body(request, SpeechRequest)
        options = self._options
        voice = options.voice
        if wanted.voice:
            known = SessionConfig(
                voices=await self._server.voices(),
                mixes_voices=options.mixes_voices,
                default_voice=options.voice,
            )
            voice = check_voice(known, wanted.voice, "voice")
        speed = options.speed if wanted.speed is None else wanted.speed
        chunks = speech.spoken(self._engines.synthesizer, wanted.input, voice, speed, options.time_limits)
        file = speech.as_file(chunks, wanted.response_format)
        if wanted.stream_format == "sse":
            return await streamed(request, events(speech.as_events(file)), SSE)
        return await streamed(request, file, MEDIA_TYPES[wanted.response_format])

    async def chat_completions(self, request: Request) -> Response:
        wanted = await json_body(request, ChatRequest)
        wanted.refuse_unbuilt()
        wanted.refuse_unpaired()
        tools = wanted.offered()
        options = self._options
        sampling = wanted.sampling(options.sampling, options.context_tokens)
        deltas = chat.answer(self._engines.chat, wanted, tools, sampling, options.time_limits)
        completion = Completion(wanted.model)
        if wanted.stream:
            chunks = completion.chunks(deltas, wanted.stream_options)
            return await streamed(request, events(chunks, DONE), SSE)
        async with while_connected(request.receive), aclosing(deltas):
            return JSONResponse(await completion.whole(deltas))

    async def voices(self, request: Request) -> Response:
        names = await self._server.voices() or {self._options.voice}
        return JSONResponse({"voices": [{"id": name, "name": name} for name in sorted(names)]})

    async def models(self, request: Request) -> Response:
        return JSONResponse(await self._server.models())

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        models = (await self._server.models())["data"]
        assert isinstance(models, list)
        for model in models:
            if model["id"] == name:
                return JSONResponse(model)
        message = f"The model '{name[:100]}' does not exist; /v1/models lists what there is."
        raise ApiError(404, message, code="model_not_found", param="model")
