"""The plain answer to each route; a script changes what it says, never which route it is."""

import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson

from proxy.clock import Clock
from proxy.standin.chat import Identity, plan_completion
from proxy.standin.chat_forms import DONE, as_events, as_json, sse
from proxy.standin.embeddings import embeddings_answer
from proxy.standin.record import Recorded
from proxy.standin.script import Script

JSON_TYPE = "application/json"
SSE_TYPE = "text/event-stream; charset=utf-8"
MODELS = ("gpt-4o", "gpt-4o-mini", "text-embedding-3-large", "text-embedding-3-small")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, cut into the pieces that it is written in; `tokens` is what it takes to make."""

    status: int
    content_type: str
    pieces: list[bytes]
    streamed: bool = False
    tokens: int = 0


class BadRequest(Exception):
    """The request is refused, with the envelope that OpenAI sends."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Answerer:
    """Makes answers; only ids and times differ from one call to the next."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._files: dict[str, dict[str, Any]] = {}

    def new_identity(self) -> Identity:
        """A fresh id, unique among all stand-ins, and the time."""
        number = f"{self._prefix}{next(self._numbers):06d}"
        return Identity(number=number, created=int(self._clock.wall()))

    def answer(self, request: Recorded, script: Script, identity: Identity) -> Answer:
        """What `request` gets, as `script` has it."""
        if script.body is not None:
            return _scripted(script)
        if script.status != HTTPStatus.OK:
            return _refusal(BadRequest(script.status, "As scripted."))
        try:
            return self._routed(request, script, identity)
        except BadRequest as refused:
            return _refusal(refused)

    def _routed(self, request: Recorded, script: Script, identity: Identity) -> Answer:
        # By the end of the path: behind Azure's deployments and other prefixes it is the same API.
        path = request.raw_path.rstrip("/")
        if "/echo" in path:
            return json_answer(echo(request))
        if request.method == "POST":
            return self._posted(path, request, script, identity)
        if request.method in {"GET", "HEAD"}:
            return self._gotten(path)
        raise _no_route(request.method, path)

    def _posted(self, path: str, request: Recorded, script: Script, identity: Identity) -> Answer:
        if path.endswith("/chat/completions"):
            return _chat(_json_body(request, "messages"), script, identity)
        if path.endswith("/embeddings"):
            return _embeddings(_json_body(request, "input"), script)
        if path.endswith("/files"):
            return self._uploaded(request, identity)
        raise _no_route(request.method, path)

    def _gotten(self, path: str) -> Answer:
        last = path.rpartition("/")[2]
        if last == "models":
            return json_answer({"object": "list", "data": [_model(name) for name in MODELS]})
        if "/models/" in path:
            return json_answer(_model(last))
        if last in self._files:
            return json_answer(self._files[last])
        raise _no_route("GET", path)

    def _uploaded(self, request: Recorded, identity: Identity) -> Answer:
        file = {
            "id": f"file-{identity.number}",
            "object": "file",
            "bytes": request.size,
            "created_at": identity.created,
            "filename": "upload",
            "purpose": "assistants",
            "status": "processed",
            "sha256": request.sha256,
        }
        self._files[str(file["id"])] = file
        return json_answer(file)


def _no_route(method: str, path: str) -> BadRequest:
    return BadRequest(404, f"Invalid URL ({method} {path})", "unknown_url")


def _refusal(refused: BadRequest) -> Answer:
    error = {
        "message": str(refused),
        "type": "invalid_request_error",
        "param": None,
        "code": refused.code,
    }
    return json_answer({"error": error}, refused.status)


def json_answer(value: Any, status: int = 200) -> Answer:
    """An answer whose body is `value` as JSON."""
    return Answer(status, JSON_TYPE, [orjson.dumps(value)])


def echo(request: Recorded) -> dict[str, Any]:
    """What arrived, told back."""
    return {
        "method": request.method,
        "path": request.raw_path,
        "query": request.query,
        "headers": [[k.decode("latin-1"), v.decode("latin-1")] for k, v in request.headers],
        "size": request.size,
        "sha256": request.sha256,
        "body": request.body.decode("utf-8", "replace"),
    }


def _scripted(script: Script) -> Answer:
    match script.body:
        case bytes() as body:
            pass
        case str() as text:
            body = text.encode()
        case value:
            body = orjson.dumps(value)
    streamed = (script.content_type or "").startswith("text/event-stream")
    return Answer(script.status, script.content_type or JSON_TYPE, [body], streamed=streamed)


def _chat(request: Mapping[str, Any], script: Script, identity: Identity) -> Answer:
    completion = plan_completion(request, script, identity)
    if not request.get("stream"):
        said = sum(len(choice.tokens) + len(choice.reasoning) for choice in completion.choices)
        return Answer(script.status, JSON_TYPE, [as_json(completion)], tokens=said)
    options = request.get("stream_options") or {}
    events = as_events(completion, include_usage=bool(options.get("include_usage")))
    if script.error_event is not None:
        error = script.error_event
        last = error.encode() if isinstance(error, str) else sse(error)
        events = [*events[: script.error_after], last]
    elif script.done:
        events.append(DONE)
    return Answer(script.status, SSE_TYPE, events, streamed=True)


def _embeddings(request: Mapping[str, Any], script: Script) -> Answer:
    try:
        body = embeddings_answer(request, script)
    except ValueError as wrong:
        raise BadRequest(400, str(wrong)) from wrong
    return Answer(script.status, JSON_TYPE, [body])


def _json_body(request: Recorded, required: str) -> Mapping[str, Any]:
    try:
        body = orjson.loads(request.body)
    except orjson.JSONDecodeError as wrong:
        raise BadRequest(400, "We could not parse the JSON body of your request.") from wrong
    if not isinstance(body, dict):
        raise BadRequest(400, "The body is not an object.")
    if not isinstance(body.get("model"), str):
        raise BadRequest(400, "you must provide a model parameter")
    if required not in body:
        raise BadRequest(400, f"Missing required parameter: '{required}'.", "missing_parameter")
    return body


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_715_367_049, "owned_by": "standin"}
