"""The routes of the server."""

import asyncio
import hmac
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import FormData, Headers
from starlette.exceptions import HTTPException

from ..prompt import SYSTEM_PROMPT
from . import chat, images
from .batcher import Batcher, Job
from .errors import RequestRefused, error_body
from .fields import image_of, parse_body
from .metrics import Metrics
from .work import Model

POLL = 0.2  # seconds between two looks at whether a client has left
FORM_FIELDS = 40
DISCARDED = 2  # a body up to this many times too large is read before the answer, so that the client reads the answer


@dataclass(frozen=True)
class ServerSettings:
    """What the server allows.

    Attributes:
        api_key: that clients must send as a bearer token; None lets everybody in.
        queue_size: images or answers that wait per model; more are answered 429.
        timeout: seconds until a request is given up.
        wait: seconds that a batch waits for one more, see Batcher.
        most_body_bytes, most_image_bytes, most_images: of a request.
        system_prompt, roles: of conversations that do not say otherwise.
    """

    api_key: str | None = None
    queue_size: int = 64
    timeout: float = 600.0
    wait: float = 0.01
    most_body_bytes: int = 64 * 2**20
    most_image_bytes: int = 20 * 2**20
    most_images: int = 16
    system_prompt: str = SYSTEM_PROMPT
    roles: str = "auto"


class Server:
    """The models with their queues, and what the routes do."""

    def __init__(self, models: list[Model], settings: ServerSettings):
        self.settings, self.models = settings, {model.name: model for model in models}
        self.created, self.queues = int(time.time()), {}
        self.metrics = Metrics({name: lambda name=name: self.waiting(name) for name in self.models})

    def waiting(self, name: str) -> int:
        """Images or answers that wait for a model."""
        return self.queues[name].length if name in self.queues else 0

    def queue(self, model: Model) -> Batcher:
        """The queue of a model, made in the event loop that serves it."""
        if model.name not in self.queues:
            batch = self.metrics.batch.labels(model.name)
            more = {"wait": self.settings.wait, "observe": batch.observe}
            self.queues[model.name] = Batcher(model.run, model.batch_size, self.settings.queue_size, **more)
        return self.queues[model.name]

    def model(self, values: dict) -> Model:
        """The model that a body names; the first one where it names none. Raises RequestRefused (404)."""
        name = values.get("model")
        if name is None:
            return next(iter(self.models.values()))
        if not isinstance(name, str) or name not in self.models:
            message = f"There is no model {str(name)[:80]!r}, only {', '.join(self.models)}."
            raise RequestRefused(message, 404, "model", "model_not_found")
        return self.models[name]

    def check_key(self, headers: Headers):
        """Raises RequestRefused (401) unless the request has the server's key."""
        if self.settings.api_key is None:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        own = self.settings.api_key.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), own):
            raise RequestRefused("The API key is missing or wrong.", 401, code="invalid_api_key")

    async def body(self, request: Request) -> bytes:
        """The body. Raises RequestRefused (413) for one that is too large."""
        most, data, length = self.settings.most_body_bytes, bytearray(), 0
        async for part in request.stream():
            length += len(part)
            if length <= most:
                data += part
            elif length > DISCARDED * most:
                break
        if length > most:
            raise _too_large(most)
        return bytes(data)

    async def form(self, request: Request) -> FormData:
        """The fields of a form. Raises RequestRefused for one that is too large or damaged."""
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            raise RequestRefused("A form needs a Content-Length.", 411)
        if len(length) > 18 or int(length) > self.settings.most_body_bytes:
            raise _too_large(self.settings.most_body_bytes)
        try:
            most = {"max_files": 1, "max_fields": FORM_FIELDS, "max_part_size": self.settings.most_body_bytes}
            return await request.form(**most)
        except HTTPException:
            raise
        except Exception as error:  # of python-multipart, for damaged forms
            raise RequestRefused(f"The body is not a form ({type(error).__name__}).") from None

    async def result(self, request: Request, job: Job, model: Model):
        """Waits for a job; it is cancelled when the client leaves or the time is up."""
        future = self.queue(model).submit(job)
        deadline = time.monotonic() + self.settings.timeout
        try:
            while not future.done():
                await asyncio.wait([future], timeout=POLL)
                if not future.done() and await request.is_disconnected():
                    raise RequestRefused("The client has left.", 499, code="cancelled")
                if not future.done() and time.monotonic() > deadline:
                    raise RequestRefused("The request took too long: try again later.", 503, code="timeout")
            if future.cancelled():
                raise RequestRefused("The server is stopping.", 503, code="stopping")
            return future.result()
        finally:
            job.cancel()

    async def make_images(self, request: Request, values: dict, model: Model, source=None) -> dict:
        wanted = images.images_wanted(values, model, self.settings.most_images, source)
        found = await self.result(request, Job(wanted.setting, len(wanted.seeds), wanted), model)
        self.metrics.images.labels(model.name).inc(len(found))
        return await asyncio.to_thread(images.images_body, found)

    async def edit(self, request: Request) -> dict:
        form = await self.form(request)
        try:
            file = form.get("image") or form.get("image[]")
            if file is None or isinstance(file, str):
                raise RequestRefused("The field image is missing.", param="image")
            data = await file.read(self.settings.most_image_bytes + 1)
            fields = {name: value for name, value in form.items() if name not in ("image", "image[]")}
        finally:
            await form.close()
        if any(not isinstance(value, str) for value in fields.values()):
            raise RequestRefused("Only the field image may be a file: masks are not supported.", param="mask")
        values = images.numbers_of(fields)
        model = self.model(values)
        if model.family == "janusflow":
            raise RequestRefused("JanusFlow cannot edit images: use a Janus-4o checkpoint.", param="model")
        source = await asyncio.to_thread(image_of, data, "image", self.settings.most_image_bytes)
        return await self.make_images(request, values, model, source)

    async def chat(self, request: Request) -> Response:
        values = parse_body(await self.body(request))
        model = self.model(values)
        stream, usage = chat.wants_stream(values)
        own = self.settings
        wanted = await asyncio.to_thread(chat.answer_wanted, values, own.system_prompt, own.roles, own.most_image_bytes)
        chat.check_wanted(wanted, model.pipe)
        job = Job(wanted.setting, 1, wanted)
        if not stream:
            answer = await self.result(request, job, model)
            self.metrics.tokens.labels(model.name).inc(answer.tokens)
            return JSONResponse(chat.completion(model.name, answer))
        loop, texts = asyncio.get_running_loop(), asyncio.Queue()
        job.on_text = lambda text: loop.call_soon_threadsafe(texts.put_nowait, text)
        job.result.add_done_callback(lambda _: texts.put_nowait(None))
        self.queue(model).submit(job)
        return StreamingResponse(self._events(job, texts, model, usage), media_type="text/event-stream")

    async def _events(self, job: Job, texts: asyncio.Queue, model: Model, usage: bool):
        """The events of a streamed answer; the job is cancelled when the client leaves."""
        chunks = chat.Chunks(model.name)
        try:
            yield chunks.first()
            deadline = time.monotonic() + self.settings.timeout
            while (text := await asyncio.wait_for(texts.get(), deadline - time.monotonic())) is not None:
                if event := chunks.more(text):
                    yield event
            answer = job.result.result()
            self.metrics.tokens.labels(model.name).inc(answer.tokens)
            yield chunks.last(answer, usage)
        except RequestRefused as error:
            yield _error_event(error)
        except asyncio.TimeoutError:  # noqa: UP041 - another class in Python 3.10
            yield _error_event(RequestRefused("The request took too long.", 503, code="timeout"))
        finally:
            job.cancel()

    async def close(self):
        for queue in self.queues.values():
            await queue.close()


class Measured:
    """Checks the key of every request but /health, and counts requests and their seconds."""

    def __init__(self, app, server: Server, paths: set):
        self.app, self.server, self.paths = app, server, paths

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.monotonic(), 500

        async def sending(message):
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if scope["path"] != "/health":
                self.server.check_key(Headers(scope=scope))
            await self.app(scope, receive, sending)
        except RequestRefused as error:
            await JSONResponse(error.body(), error.status)(scope, receive, sending)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.server.metrics.requests.labels(path, str(status)).inc()
            self.server.metrics.seconds.labels(path).observe(time.monotonic() - began)


def create_app(models: list[Model], settings: ServerSettings = ServerSettings()) -> FastAPI:
    """The application, for uvicorn or any other ASGI server."""
    server = Server(models, settings)

    @asynccontextmanager
    async def lifespan(app):
        yield
        await server.close()

    app = FastAPI(title="janus_core", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.server = server

    @app.exception_handler(RequestRefused)
    async def refused(request: Request, error: RequestRefused):
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException):
        return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception):
        return JSONResponse(error_body("The server failed; its log says why.", 500), 500)

    @app.get("/health")
    async def health():
        return {"status": "ok", "models": list(server.models)}

    @app.get("/metrics")
    async def metrics():
        text, kind = server.metrics.text()
        return Response(text, media_type=kind)

    @app.get("/v1/models")
    async def models_list():
        one = {"object": "model", "created": server.created, "owned_by": "janus_core"}
        return {"object": "list", "data": [{"id": name, **one} for name in server.models]}

    @app.get("/v1/models/{name:path}")
    async def model_of(name: str):
        server.model({"model": name})
        return {"id": name, "object": "model", "created": server.created, "owned_by": "janus_core"}

    @app.post("/v1/images/generations")
    async def generations(request: Request):
        values = parse_body(await server.body(request))
        return await server.make_images(request, values, server.model(values))

    @app.post("/v1/images/edits")
    async def edits(request: Request):
        return await server.edit(request)

    @app.post("/v1/chat/completions")
    async def completions(request: Request):
        return await server.chat(request)

    app.add_middleware(Measured, server=server, paths={getattr(route, "path", None) for route in app.routes})
    return app


def _too_large(most: int) -> RequestRefused:
    return RequestRefused(f"The body is over {most >> 20} MB.", 413, code="body_too_large")


def _error_event(error: RequestRefused) -> str:
    return f"data: {json.dumps(error.body())}\n\ndata: [DONE]\n\n"
