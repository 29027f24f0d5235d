"""Sending answers: framing is decided here, and nowhere else."""

import logging
from contextlib import aclosing

from proxy.core.outcome import Outcome, XCache
from proxy.core.trailers import Trailers
from proxy.edge.asgi import Send
from proxy.edge.trailers import BODILESS, Trailing
from proxy.engine.answers import error_answer
from proxy.engine.base import Answer, BodyStream, HeaderList
from proxy.errors import ClientDeadline, CutOff, ProxyError, UpstreamError

log = logging.getLogger("magic_proxy.edge")

_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"connection"})


async def send_answer(answer: Answer, send: Send) -> None:
    """Send a whole body with its length, or a streamed one chunk by chunk as it comes."""
    headers = [pair for pair in answer.headers if pair[0].lower() not in _FRAMING]
    body = answer.body
    if not isinstance(body, bytes):
        await send_stream(answer.status, headers, body, send, answer.trailers)
        return
    trailing = Trailing.behind(send, answer.trailers, answer.status)
    if trailing is not None:
        headers.append(trailing.header)
    elif answer.status not in BODILESS:
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if trailing is not None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        trailing.begin()
        body = b""
    await send({"type": "http.response.body", "body": body})


async def send_stream(
    status: int,
    headers: HeaderList,
    body: BodyStream,
    send: Send,
    trailers: Trailers | None = None,
) -> bool:
    """Send a body as it comes, and say whether it came to its end.

    One that breaks off upstream breaks off here too: without its last chunk the server closes the
    connection, so that the client sees an unfinished body, never a clean end that was invented.
    """
    if status in BODILESS:
        headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
    trailing = Trailing.behind(send, trailers, status)
    if trailing is not None:
        headers.append(trailing.header)
    async with aclosing(body):
        await send({"type": "http.response.start", "status": status, "headers": headers})
        try:
            async for chunk in body:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ClientDeadline as error:
            log.info("an answer was broken off: %s", error.message)
            return False
        except UpstreamError as error:
            log.warning("an answer broke off upstream: %s", error.message)
            return False
        except CutOff as error:
            log.warning("an answer was broken off: %s", error.message)
            return False
        if trailing is not None:
            trailing.begin()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True


def internal_error() -> ProxyError:
    """A fault of this program, told without its inside."""
    return ProxyError("The proxy failed to answer this request.", code="internal_error")


def early_error(error: ProxyError, *, endpoint: str, request_id: str) -> tuple[Answer, Outcome]:
    """The answer to a request that never reached the engine, and the outcome that it tells."""
    outcome = Outcome(
        x_cache=XCache.ERROR,
        endpoint=endpoint,
        status=error.status,
        detail=error.error_code,
        request_id=request_id,
    )
    return error_answer(error, outcome), outcome
