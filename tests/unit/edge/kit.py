"""A client of which the server tells, without a server."""

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class Connection(asyncio.Transport):
    """Knows whether it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


class Client:
    """A client that goes when it is told to, at the server's end: what uvicorn makes of it."""

    def __init__(self, *, more_body: bool = False) -> None:
        self.connection = Connection()
        self.flow = FlowControl(self.connection)
        log = logging.getLogger(__name__)
        self._cycle = RequestResponseCycle(
            scope={},  # type: ignore[typeddict-item]  # nobody asks for it
            transport=self.connection,
            flow=self.flow,
            logger=log,
            access_logger=log,
            access_log=False,
            default_headers=[],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=lambda: None,
        )
        self.receive: Any = self._cycle.receive
        self._cycle.more_body = more_body

    @property
    def is_heard(self) -> bool:
        """Whether all that it sent was taken."""
        return not self._cycle.body

    def sends(self, body: bytes, *, more: bool = False) -> None:
        """As `on_body` and `on_message_complete`."""
        self._cycle.body += body
        self.flow.pause_reading()
        self._cycle.message_event.set()
        if not more:
            self._cycle.more_body = False
            self._cycle.message_event.set()

    def leaves(self) -> None:
        """As `connection_lost`."""
        self._cycle.disconnected = True
        self._cycle.message_event.set()
