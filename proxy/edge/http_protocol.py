"""uvicorn's HTTP protocol with what it lacks: bounds on heads, errors in the envelope, tunnels."""

import string
import sys
from typing import TYPE_CHECKING, Final

import httptools

from proxy.edge.one_write import OneWrite
from proxy.edge.tunnel import ClientEnd
from proxy.edge.unchunked import Unchunked
from proxy.edge.watched_protocol import WatchedProtocol
from proxy.errors import HeadTooLarge, RequestError

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

# Names, values and the request line together. nginx takes 32 KiB, and clients send one or two.
LONGEST_HEAD_BYTES: Final = 64 * 1024
# Where a request that asks for another protocol has its connection, in the ASGI scope.
CONNECTION: Final = "magic_proxy.connection"
# Where the names of the headers stand as the client spelled them: uvicorn's are in lower case.
NAMES: Final = "magic_proxy.names"
_LOOKED_AT: Final = frozenset({b"expect", b"host", b"transfer-encoding", b"content-length"})
# RFC 3986 section 3.2, without user and password.
_HOST_BYTES: Final = b"[]:%" + (string.ascii_letters + string.digits + "-._~!$&'()*+,;=").encode()


class BoundedProtocol(WatchedProtocol):
    """Closes a connection whose request head does not end: the parser alone would hold it all.

    The same goes for requests that can be read in two ways, and for what follows one that asks
    for another protocol.
    """

    # How many messages the parser has begun, and whether it is in one, or in its head.
    _messages = 0
    _in_message = False
    _in_head = False
    _head_bytes = 0
    _upgrading = False
    _beside_bytes = 0  # since the last of the body
    _got_body = False  # in the read under way
    _parsed = 0  # bytes of the read under way that were HTTP

    def data_received(self, data: bytes) -> None:
        """Parse, and count what belongs to a head that has not ended yet."""
        before, was_in_head, was_in_message = self._messages, self._in_head, self._in_message
        self._parsed, self._got_body = len(data), False
        if self._upgrading:
            self._parsed = 0
        else:
            super().data_received(data)
        if self._parsed < len(data):
            # It would be for the parser of another protocol, which may never come.
            self.refuse(RequestError("Nothing may follow a request to upgrade.", code="too_early"))
            return
        if not self._in_head:
            self._bound_trailers(len(data))
            return
        if was_in_head and self._messages == before:
            self._head_bytes += len(data)
        elif not was_in_message and self._messages == before + 1:
            self._head_bytes = len(data)
        # Else it began behind another message's end in these bytes: that much is given away.
        if self._head_bytes > LONGEST_HEAD_BYTES:
            self._in_head = False
            self.refuse(
                HeadTooLarge(f"The request's headers are longer than {LONGEST_HEAD_BYTES} bytes.")
            )

    def _bound_trailers(self, size: int) -> None:
        """Trailers, and what may stand beside a chunk's size, may be as long as a head."""
        cycle: RequestResponseCycle | None = self.cycle
        idle = cycle is None or not cycle.more_body
        # Of a read with some of the body in it, the rest is given away.
        self._beside_bytes = 0 if idle or self._got_body else self._beside_bytes + size
        if self._beside_bytes > LONGEST_HEAD_BYTES:
            self.refuse(HeadTooLarge("The request's trailers or chunk extensions are too long."))

    def on_message_begin(self) -> None:
        """A request's first byte was parsed."""
        self._messages += 1
        self._in_message = self._in_head = True
        self._head_bytes = 0
        self._names: list[bytes] = []
        self._hosts = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or trailer, was parsed: what uvicorn does, and more for a few of them."""
        self._names.append(name)
        name = name.lower()
        if name in _LOOKED_AT:
            self._look_at(name, value)
        self.headers.append((name, value))

    def _look_at(self, name: bytes, value: bytes) -> None:
        """Raises `ValueError`, which the parser makes a 400, for what others may read differently.

        One host, without a user, as RFC 9112 section 3.2 has it; no coding of the message but
        chunks (section 6.1); a length in decimal. The parser sees to the rest.
        """
        match name:
            case b"expect":
                self.expect_100_continue = value.lower() == b"100-continue"
            case b"host":
                self._hosts += 1
                if self._hosts > 1 or value.translate(None, _HOST_BYTES):
                    raise ValueError("no host")
            case b"transfer-encoding":
                if value.lower() != b"chunked" or self.parser.get_http_version() == "1.0":
                    raise ValueError("an unknown transfer coding")
            case b"content-length":
                if value.startswith(b"0") and value != b"0":
                    raise ValueError("a length that some read as octal")

    def on_headers_complete(self) -> None:
        """The empty line after the headers was parsed."""
        self._in_head = False
        is_old = self.parser.get_http_version() == "1.0"
        if not (self._hosts or is_old):
            raise ValueError("no host")
        self.scope[NAMES] = self._names  # type: ignore[typeddict-unknown-key]  # ours, not ASGI's
        if self.parser.should_upgrade():
            self.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]  # ours, not ASGI's
        if is_old:
            self.expect_100_continue = False  # RFC 9110 section 10.1.1
        super().on_headers_complete()
        if is_old:
            self.cycle.transport = Unchunked(self.transport)  # type: ignore[assignment]  # is enough
        elif self.scope["method"] != "HEAD":  # there nothing follows, and the answer ends with it
            self.cycle.transport = OneWrite(self.transport, self.loop)  # type: ignore[assignment]
        # What uvicorn adds from here on are trailers: no header that somebody in between has
        # checked may come in that way.
        self.headers, self._names = [], []

    def on_body(self, body: bytes) -> None:
        """Some of the body was parsed."""
        self._got_body = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request's last byte was parsed."""
        self._in_message = False
        super().on_message_complete()

    def await_upgrade(self) -> None:
        """The request under way asks for a tunnel: nothing may come before its answer."""
        self._upgrading = True
        self.cycle.keep_alive = False

    def take_over(self, head: bytes) -> ClientEnd | None:
        """Answer the request with `head`, after which the connection is no longer HTTP.

        None where the client has gone.
        """
        if self.transport.is_closing() or self.pipeline:
            return None
        self.transport.write(head)
        self.cycle.response_started = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self.connections.discard(self)
        return ClientEnd(self.transport, self.connections)

    def tunnel_ended(self) -> None:
        """uvicorn has nothing more to do with the request."""
        self.cycle.response_complete = True

    def _unsupported_upgrade_warning(self) -> None:
        """Not worth a line: what is not known here is passed over (RFC 9110 section 7.8)."""
        upgrade = sys.exception()
        assert isinstance(upgrade, httptools.HttpParserUpgrade), "who calls this has caught one"
        self._parsed = upgrade.args[0]

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets its answer in the envelope as well."""
        self._in_head = False
        self.refuse(RequestError(msg, code="invalid_http"))
