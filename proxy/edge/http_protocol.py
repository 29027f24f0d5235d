"""uvicorn's HTTP protocol with what it lacks: a bound on heads, and refusals in the envelope."""

from typing import Final

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from proxy.edge.watched_protocol import WatchedProtocol
from proxy.errors import HeadTooLarge, ProxyError, RequestError

# Names, values and the request line together. nginx takes 32 KiB, and clients send one or two.
LONGEST_HEAD_BYTES: Final = 64 * 1024


class BoundedProtocol(WatchedProtocol):
    """Closes a connection whose request head does not end: the parser alone would hold it all."""

    # How many messages the parser has begun, and whether it is in one, or in its head.
    _messages = 0
    _in_message = False
    _in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse, and count what belongs to a head that has not ended yet."""
        was_in_head, first = self._in_head, not self._in_message and self._messages + 1
        super().data_received(data)
        if not self._in_head:
            return
        if was_in_head:
            self._head_bytes += len(data)
        elif self._messages == first:
            self._head_bytes = len(data)
        # Else it began behind another message's end in these bytes: that much is given away.
        if self._head_bytes > LONGEST_HEAD_BYTES:
            self._in_head = False
            self.refuse(
                HeadTooLarge(f"The request's headers are longer than {LONGEST_HEAD_BYTES} bytes.")
            )

    def on_message_begin(self) -> None:
        """A request's first byte was parsed."""
        self._messages += 1
        self._in_message = self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The empty line after the headers was parsed."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request's last byte was parsed."""
        self._in_message = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets its answer in the envelope as well."""
        self._in_head = False
        self.refuse(RequestError(msg, code="invalid_http"))

    def refuse(self, error: ProxyError) -> None:
        """Say what is wrong, unless another answer is under way, and close."""
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's type leaves the None out
        answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if not answering and not self.pipeline:
            body = orjson.dumps(error.envelope())
            self.transport.write(
                b"%bcontent-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%b" % (STATUS_LINE[error.status], len(body), body)
            )
        self.transport.close()
