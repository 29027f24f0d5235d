"""The error tree. Each class that can reach a client has one status and one OpenAI envelope.

ProxyError
├── RequestError                 400  the client's request is at fault
│   ├── MalformedBody            400  not JSON, not an object, a member of a wrong type, too deep
│   ├── RequestTooSlow           408  it did not come in time
│   ├── UnsupportedBody          415  a content type or coding that the endpoint does not take
│   ├── BodyTooLarge             413
│   ├── HeadTooLarge             431
│   ├── UnknownModel             404  the model list is closed and does not name this model
│   ├── UnknownEvent             404  `invalidation` does not name it
│   ├── UnknownRoute             404
│   ├── MethodNotAllowed         405  the path is known, the method is not
│   └── NotAuthenticated         401  no, or no known, client credential or admin key
├── TooManyConnections           503  `server.max_connections`
├── NotCached                    504  `only-if-cached` and no entry
├── CutOff                       503  a reader fell too far behind; its answer breaks off
├── WorkersSilent                503  not all workers could be asked for what they counted
├── PurgeIncomplete              503  a purge that not everybody knows of, or that was not counted
├── UpstreamError                502  the upstream gave no usable answer
│   ├── UpstreamFailing          502  it answered that it fails, and there is a stale entry instead
│   ├── UpstreamUnreachable      502  refused, reset, unresolvable, TLS failure
│   ├── UpstreamTimeout          504  one of the time-outs ran out before the first byte
│   │   └── ClientDeadline       504  the client's own time ran out; the work may go on
│   ├── UpstreamProtocolError    502  what came back was not HTTP, or ended in the middle
│   ├── CircuitOpen              503  the upstream has just failed too often, and is left alone
│   ├── NoConnectionFree         503  all connections that it may have are in use
│   ├── UpstreamBusy             429  as many requests as it may have are under way, or wait
│   └── KeysExhausted            429  every key of the pool is cooling or retired
├── StoreError                        never reaches a client: it costs a miss
│   ├── StoreUnavailable              down, slow, or its circuit is open
│   ├── FellBehind                    a follower elsewhere: what it has not read yet is gone
│   └── EntryUnreadable               bytes that do not decode to the entry that was asked for
│       └── DictionaryMissing         they may, with a dictionary that is not at hand
└── SettingsError                     start and `check`: a list of mistakes with their places
"""

from dataclasses import dataclass
from typing import Any, ClassVar


class ProxyError(Exception):
    """Whatever this program raises on purpose."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code or self.code
        self.retry_after_seconds = retry_after_seconds

    def envelope(self) -> dict[str, Any]:
        """The body of the answer, in the shape that OpenAI clients parse."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.error_code,
            }
        }


class RequestError(ProxyError):
    """The client's request is at fault."""

    status = 400
    type = "invalid_request_error"


class MalformedBody(RequestError):
    """The body is not what this endpoint takes."""

    code = "invalid_json"


class RequestTooSlow(RequestError):
    """The client did not send its request in time."""

    status = 408
    code = "request_timeout"


class UnsupportedBody(RequestError):
    """The content type or content coding is not one that this endpoint takes."""

    status = 415
    code = "unsupported_media_type"


class BodyTooLarge(RequestError):
    """The body is longer than `server.max_body_bytes`."""

    status = 413
    code = "request_too_large"


class HeadTooLarge(RequestError):
    """The request line and headers are longer than any client's."""

    status = 431
    code = "headers_too_large"


class UnknownModel(RequestError):
    """The model list is closed, and this name is not on it."""

    status = 404
    code = "model_not_found"


class UnknownEvent(RequestError):
    """The settings name no such event."""

    status = 404
    code = "unknown_event"


class UnknownRoute(RequestError):
    """Nothing is served under this path."""

    status = 404
    code = "unknown_url"


class MethodNotAllowed(RequestError):
    """The path is known, the method is not."""

    status = 405
    code = "method_not_allowed"


class NotAuthenticated(RequestError):
    """The credential is absent or not known here."""

    status = 401
    code = "invalid_api_key"


class TooManyConnections(ProxyError):
    """There are as many connections as there may be."""

    status = 503
    code = "too_many_connections"


class NotCached(ProxyError):
    """The client asked for a cached answer only, and there is none."""

    status = 504
    type = "cache_error"
    code = "not_cached"


class CutOff(ProxyError):
    """A client read so slowly that its part of a shared answer could not be held any longer."""

    status = 503
    code = "client_too_slow"


class WorkersSilent(ProxyError):
    """What only all workers together know could not be found out."""

    status = 503
    code = "workers_silent"


class PurgeIncomplete(ProxyError):
    """A purge is in force in this process alone, or could not be counted."""

    status = 503
    type = "cache_error"
    code = "purge_incomplete"


class UpstreamError(ProxyError):
    """The upstream gave no usable answer."""

    status = 502
    type = "upstream_error"
    code = "upstream_failed"

    connecting: bool = False
    """True where it failed before there was a connection: nothing was sent."""

    may_be_done: bool = True
    """False where no upstream can have done anything of what was asked."""


class UpstreamFailing(UpstreamError):
    """It answered that it fails; raised only where a stale entry is served instead."""

    code = "upstream_failing"

    answered: int | None = None
    """The status that it answered with."""


class UpstreamUnreachable(UpstreamError):
    """No connection: refused, reset, unresolvable, or no TLS."""

    code = "upstream_unreachable"


class UpstreamTimeout(UpstreamError):
    """A time-out ran out before the upstream had answered."""

    status = 504
    code = "upstream_timeout"


class ClientDeadline(UpstreamTimeout):
    """The time ran out that the client itself has set, in a header, for its request."""

    code = "client_deadline"


class UpstreamProtocolError(UpstreamError):
    """What came back was not HTTP, or ended in the middle."""

    code = "upstream_protocol_error"


class CircuitOpen(UpstreamError):
    """The upstream failed too often; it is tried again after `seconds`."""

    status = 503
    code = "upstream_circuit_open"

    @property
    def seconds(self) -> float:
        """Until it may be asked; 0 where it may be now."""
        return self.retry_after_seconds or 0.0


class NoConnectionFree(UpstreamError):
    """All connections that the proxy may have to the upstream are in use: it was not asked."""

    status = 503
    code = "upstream_no_connection_free"


class UpstreamBusy(UpstreamError):
    """The upstream has all the requests that it may have; `retry_after_seconds` is a guess."""

    status = 429
    type = "rate_limit_error"
    code = "upstream_busy"


class KeysExhausted(UpstreamError):
    """Every key of the pool is cooling or retired; `retry_after_seconds` is the soonest."""

    status = 429
    type = "rate_limit_error"
    code = "upstream_keys_exhausted"


class StoreError(ProxyError):
    """A store failed; a client never sees this, it costs a miss."""

    type = "store_error"


class StoreUnavailable(StoreError):
    """The store is down, too slow, or its circuit is open."""


class FellBehind(StoreError):
    """What a leader in another process published is gone before it was read here."""


class EntryUnreadable(StoreError):
    """The stored bytes do not decode to the entry that was asked for."""


class DictionaryMissing(EntryUnreadable):
    """The stored bytes were compressed with a dictionary that is not at hand."""

    def __init__(self, dictionary_id: int) -> None:
        super().__init__(f"the entry needs dictionary {dictionary_id}")
        self.dictionary_id = dictionary_id


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake in the settings: `line` and `column` count from 1, 0 where there is no file."""

    message: str
    path: str = ""
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}: " if self.line else ""
        path = f"{self.path}: " if self.path else ""
        return f"{place}{path}{self.message}"


class SettingsError(ProxyError):
    """The settings can't be used; `mistakes` says all of what is wrong, in file order."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = mistakes
