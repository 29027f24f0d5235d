"""Structured logs of the process: one JSON object a line, on standard error."""

import asyncio
import logging
import sys
from datetime import UTC, datetime

import orjson


class JsonLines(logging.Formatter):
    """Time, level, logger and message; a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str | int] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (worker := getattr(record, "worker", None)) is not None:
            line["worker"] = worker
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


class PlainLines(logging.Formatter):
    """The same for people, where standard error is a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")


def expected_break(record: logging.LogRecord) -> bool:
    """False for the server's complaint about an answer that was broken off on purpose.

    That is one that broke off upstream, or one that a stop did not wait for any longer.
    """
    cancelled = record.exc_info is not None and record.exc_info[0] is asyncio.CancelledError
    return not cancelled and "without completing response" not in str(record.msg)


def name_worker(number: int) -> None:
    """Have every line of this process say which worker wrote it."""

    def name(record: logging.LogRecord) -> bool:
        record.worker = number
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(name)


def configure_logging(level: str) -> None:
    """Send everything that is logged to standard error."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(PlainLines() if sys.stderr.isatty() else JsonLines())
    stream.addFilter(expected_break)
    logging.basicConfig(level=level.upper(), handlers=[stream], force=True)
    # Its start and stop lines say less than ours.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # These log URLs and headers, and an upstream's can hold credentials.
    for name in ("httpx", "httpcore", "aiohttp"):
        logging.getLogger(name).setLevel(logging.WARNING)
