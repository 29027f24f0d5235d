"""Which answers may be stored: verdicts on whole bodies and on streams as they pass."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never

import orjson

from proxy.core.embeddings import is_vector
from proxy.core.entry import Form, Usage
from proxy.core.sse import DEFAULT_MAX_EVENT_BYTES, EventTooLarge, SseEvent, SseParser, WholeEvents
from proxy.core.transcript import NotAChunk, NotAssemblable, Transcript, read_usage
from proxy.core.wire import Endpoint

DONE = b"[DONE]"


class NotStored(StrEnum):
    """Why an answer was not stored."""

    # The status is not 200.
    STATUS = "status"
    # The content type is not the one that the recorded form has.
    CONTENT_TYPE = "content-type"
    # The body, or an event of the stream, is not what the API's answers look like.
    UNPARSABLE = "unparsable"
    # The body, or one of its choices, has an `error`.
    ERROR_BODY = "error-body"
    # A choice has no finish reason, or there are fewer choices than were asked for.
    UNFINISHED = "unfinished"
    # A choice ended for a reason that the rule does not store (`length`, `content_filter`).
    FINISH_REASON = "finish-reason"
    # The arguments of a tool call are not JSON.
    TOOL_ARGUMENTS = "tool-arguments"
    # The answer is longer than the rule's `max_entry_bytes`.
    TOO_LARGE = "too-large"
    # The stream ended early: no terminal event at an event boundary, or a broken transport.
    TRUNCATED = "truncated"
    # The stream carried an error event.
    ERROR_EVENT = "error-event"
    # The embeddings are not one for each input, or their indices are not complete.
    ITEM_COUNT = "item-count"
    # The content coding can't be decoded.
    CONTENT_CODING = "content-coding"
    # The client asked for it: `Cache-Control: no-store`.
    CLIENT_NO_STORE = "client-no-store"
    # The freshness lifetime is zero.
    NO_LIFETIME = "no-lifetime"
    # It depends on a request header that is not in the key (`Vary`).
    VARY = "vary"
    # The queue of writes is full.
    QUEUE_FULL = "queue-full"
    # Another worker or replica has taken over, since this one was not heard of for too long.
    LEASE_LOST = "lease-lost"
    # The rule and the client give it more tags than an entry may have.
    TOO_MANY_TAGS = "too-many-tags"


@dataclass(frozen=True, slots=True)
class Recording:
    """An answer that may be stored: its bytes without content coding, and what they say."""

    form: Form
    payload: bytes
    usage: Usage | None
    finish_reasons: tuple[str, ...]


def judge_json(
    endpoint: Endpoint,
    status: int,
    content_type: str,
    body: bytes,
    *,
    store_finish_reasons: AbstractSet[str],
    max_bytes: int,
    items: int | None,
) -> Recording | NotStored:
    """The verdict on a whole body, decoded; `items` is how many vectors or choices were wanted."""
    answer = _answer(status, content_type, body, max_bytes)
    if isinstance(answer, NotStored):
        is_list = endpoint is Endpoint.RESOURCE and answer is NotStored.UNPARSABLE
        if is_list and isinstance(_parsed(body), list):
            return Recording(Form.JSON, body, None, ())
        return answer
    reasons: tuple[str, ...] = ()
    match endpoint:
        case Endpoint.CHAT:
            if refused := _judge_completion(answer, store_finish_reasons, items):
                return refused
            reasons = tuple(choice["finish_reason"] for choice in answer["choices"])
        case Endpoint.EMBEDDINGS:
            if refused := _judge_embeddings(answer, items):
                return refused
        case Endpoint.RESOURCE:
            # Its `usage` is what something else has cost.
            return Recording(Form.JSON, body, None, ())
        case _:
            assert_never(endpoint)
    return Recording(Form.JSON, body, read_usage(answer.get("usage")), reasons)


def _answer(
    status: int, content_type: str, body: bytes, max_bytes: int
) -> dict[str, Any] | NotStored:
    """The parsed body of a successful answer of either endpoint."""
    if status != 200:  # noqa: PLR2004 -- the one status whose answers are complete
        return NotStored.STATUS
    if content_type.partition(";")[0].strip().lower() != "application/json":
        return NotStored.CONTENT_TYPE
    if len(body) > max_bytes:
        return NotStored.TOO_LARGE
    answer = _parsed(body)
    if not isinstance(answer, dict):
        return NotStored.UNPARSABLE
    return NotStored.ERROR_BODY if answer.get("error") is not None else answer


def _judge_completion(
    completion: dict[str, Any], allowed: AbstractSet[str], wanted: int | None
) -> NotStored | None:
    choices = completion.get("choices")
    if not isinstance(choices, list):
        return NotStored.UNPARSABLE
    for choice in choices:
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            return NotStored.UNPARSABLE
    if any(choice.get("error") is not None for choice in choices):
        return NotStored.ERROR_BODY
    return _judge_ends(choices, allowed, wanted)


def _judge_ends(
    choices: list[dict[str, Any]], allowed: AbstractSet[str], wanted: int | None
) -> NotStored | None:
    if len(choices) < (wanted or 1):
        return NotStored.UNFINISHED
    reasons = [choice.get("finish_reason") for choice in choices]
    if not all(isinstance(reason, str) and reason for reason in reasons):
        return NotStored.UNFINISHED
    if not all(reason in allowed for reason in reasons):
        return NotStored.FINISH_REASON
    for choice in choices:
        if not all(_parses(arguments) for arguments in _arguments(choice["message"])):
            return NotStored.TOOL_ARGUMENTS
    return None


def _arguments(message: dict[str, Any]) -> Iterator[object]:
    calls = message.get("tool_calls")
    functions = [
        call.get("function")
        for call in (calls if isinstance(calls, list) else ())
        if isinstance(call, dict)
    ]
    for function in (*functions, message.get("function_call")):
        if isinstance(function, dict):
            yield function.get("arguments")


def _parses(arguments: object) -> bool:
    """Empty arguments are how some providers call a function that takes none."""
    if not isinstance(arguments, str) or not arguments:
        return True
    try:
        orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return False
    return True


def _judge_embeddings(answer: dict[str, Any], items: int | None) -> NotStored | None:
    vectors = answer.get("data")
    if not isinstance(vectors, list):
        return NotStored.UNPARSABLE
    if not all(isinstance(row, dict) and is_vector(row.get("embedding")) for row in vectors):
        return NotStored.UNPARSABLE
    if len({type(vector["embedding"]) for vector in vectors}) > 1:
        return NotStored.UNPARSABLE
    indices = [vector.get("index") for vector in vectors]
    count = len(vectors) if items is None else items
    if not all(type(index) is int for index in indices) or sorted(indices) != list(range(count)):
        return NotStored.ITEM_COUNT
    return None


class StreamRecorder:
    """Reads a chat stream along and says at its end whether, and what of it, may be stored.

    Past `max_bytes` it lets go of all that it holds and only looks out for usage. Each event is
    parsed when it comes, so that the end of a long stream costs no more than joining its bytes.
    `choices` is how many were asked for. `saw_terminal` is True once `data: [DONE]` came, with its
    blank line.
    """

    def __init__(
        self, *, store_finish_reasons: AbstractSet[str], max_bytes: int, choices: int | None = None
    ) -> None:
        self._allowed = store_finish_reasons
        self._choices = choices
        self._max_bytes = max_bytes
        self._parser = SseParser(max_event_bytes=DEFAULT_MAX_EVENT_BYTES)
        self._transcript: Transcript | None = Transcript()
        self._raw: list[bytes] = []
        self._size = 0
        self._usage: Usage | None = None
        self._refused: NotStored | None = None
        self._deaf = False  # an event was too long for the parser: it can't go on
        self.saw_terminal = False

    @property
    def usage(self) -> Usage | None:
        """The last token counts that the stream told, stored or not."""
        if self._transcript is not None and (usage := self._transcript.usage) is not None:
            return usage
        return self._usage

    @property
    def is_refused(self) -> bool:
        """True once it is known that nothing will be stored, however the stream goes on."""
        return self._refused is not None

    def feed(self, raw: bytes) -> None:
        """Take the next bytes of the stream, decoded, in any split."""
        if self._deaf:
            return
        try:
            events = self._parser.feed(raw)
        except EventTooLarge:
            self._deaf = True
            self._refuse(NotStored.TOO_LARGE)
            return
        for event in events:
            if self._transcript is None:
                self._look_for_usage(event)
            else:
                self._take(event, self._transcript)

    def finish(self, ended_well: bool) -> Recording | NotStored:  # noqa: FBT001 -- the one thing to say
        """The verdict; `ended_well` says that the transport came to its proper end."""
        if self._refused is not None or self._transcript is None:
            return self._refused or NotStored.UNPARSABLE
        if not (ended_well and self.saw_terminal):
            return NotStored.TRUNCATED
        if not self._parser.at_boundary and not self._parser.pending.lstrip().startswith(b":"):
            return NotStored.UNPARSABLE
        try:
            completion = self._transcript.completion()
        except NotAssemblable:
            return NotStored.UNPARSABLE
        refused = _judge_completion(completion, self._allowed, self._choices)
        if refused is not None:
            return refused
        reasons = self._transcript.finish_reasons
        return Recording(Form.SSE, b"".join(self._raw), self.usage, reasons)

    def _take(self, event: SseEvent, transcript: Transcript) -> None:
        if self.saw_terminal:
            if event.data or event.event:
                self._refuse(NotStored.UNPARSABLE)
            return
        self._size += len(event.raw)
        if self._size > self._max_bytes:
            self._refuse(NotStored.TOO_LARGE)
            self._look_for_usage(event)
            return
        self._raw.append(event.raw)
        if event.event == b"error":
            self._refuse(NotStored.ERROR_EVENT)
        elif event.data == DONE:
            self.saw_terminal = True
        elif event.data:
            try:
                transcript.add(event.data)
            except NotAChunk:
                self._refuse(NotStored.UNPARSABLE)
                return
            if transcript.error:
                self._refuse(NotStored.ERROR_EVENT)

    def _refuse(self, reason: NotStored) -> None:
        self._usage = self.usage
        self._refused = self._refused or reason
        self._transcript = None
        self._raw = []

    def _look_for_usage(self, event: SseEvent) -> None:
        if event.data == DONE:
            self.saw_terminal = True
        elif b'"usage"' in event.data and isinstance(chunk := _parsed(event.data), dict):
            self._usage = read_usage(chunk.get("usage")) or self._usage


def _parsed(json: bytes) -> object:
    try:
        return orjson.loads(json)
    except orjson.JSONDecodeError:
        return None


class UsageFilter(WholeEvents):
    """Passes a stream without its usage chunk: for a client that did not ask for it."""

    def __init__(self) -> None:
        super().__init__(drops=is_usage_chunk)


def is_usage_chunk(data: bytes) -> bool:
    """True for the chunk that tells usage and nothing else: no choices."""
    if b'"usage"' not in data or b'"usage":null' in data:
        return False
    chunk = _parsed(data)
    return isinstance(chunk, dict) and not chunk.get("choices") and chunk.get("usage") is not None
