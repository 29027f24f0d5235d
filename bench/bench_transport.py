"""CPU of the two transports: per POST, and per streamed event, in turns within one run.

    python -m bench.bench_transport [--turns 3] [--requests 400] [--events 4000]

The server runs in a process of its own on loopback and writes fixed bytes. Reported is the median
of the turns' ratios with its range, and each transport's CPU microseconds (user and system, of
this process alone) per request and per event.
"""

import argparse
import asyncio
import multiprocessing
import resource
import statistics
import sys
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection

from proxy.upstream.base import Transport, UpstreamRequest
from proxy.upstream.config import TransportName, UpstreamConfig
from proxy.upstream.transport import open_transport

ANSWER = b'{"choices":[{"message":{"content":"' + b"word " * 300 + b'"}}]}'
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"word " * 380 + b'"}]}'
EVENT = b'data: {"choices":[{"delta":{"content":" word"}}]}\n\n'
CONCURRENT = 16


async def _serve(port: Connection, events: int) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                if b"/stream" in head.split(b"\r\n")[0]:
                    await _stream(writer, events)
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ANSWER))
                    writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def _stream(writer: asyncio.StreamWriter, events: int) -> None:
    """One event in each write; the pause lets each arrive by itself."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(events):
        writer.write(b"%x\r\n%s\r\n" % (len(EVENT), EVENT))
        await asyncio.sleep(0.0005)
    writer.write(b"0\r\n\r\n")


def _server(port: Connection, events: int) -> None:
    asyncio.run(_serve(port, events))


@dataclass(frozen=True)
class Cost:
    """CPU microseconds."""

    per_post: float
    per_event: float


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return (used.ru_utime + used.ru_stime) * 1e6


async def _posts(transport: Transport, root: str, count: int) -> None:
    async def worker(share: int) -> None:
        headers = ((b"content-type", b"application/json"), (b"authorization", b"Bearer sk"))
        for _ in range(share):
            request = UpstreamRequest("POST", root + "/chat", headers, BODY)
            response = await transport.send(request)
            async for _chunk in response.aiter_raw():
                pass
            await response.aclose()

    await asyncio.gather(*(worker(count // CONCURRENT) for _ in range(CONCURRENT)))


async def _events(transport: Transport, root: str) -> int:
    response = await transport.send(UpstreamRequest("POST", root + "/stream", (), BODY))
    length = 0
    async for chunk in response.aiter_raw():
        length += len(chunk)
    await response.aclose()
    return length // len(EVENT)


async def _measure(name: TransportName, root: str, requests: int) -> Cost:
    transport = open_transport(UpstreamConfig("bench", root, transport=name))
    try:
        await _posts(transport, root, CONCURRENT * 4)
        before = _cpu()
        await _posts(transport, root, requests)
        posts = _cpu() - before
        before = _cpu()
        events = await _events(transport, root)
        return Cost(posts / requests, (_cpu() - before) / events)
    finally:
        await transport.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--events", type=int, default=4000)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=_server, args=(theirs, options.events), daemon=True)
    server.start()
    root = f"http://127.0.0.1:{ours.recv()}/v1"
    costs: dict[TransportName, list[Cost]] = {name: [] for name in TransportName}
    try:
        for _ in range(options.turns):
            for name in TransportName:
                costs[name].append(asyncio.run(_measure(name, root, options.requests)))
    finally:
        server.terminate()
        server.join()
    versions = ", ".join(f"{name} {version(name)}" for name in TransportName)
    print(f"Python {sys.version.split()[0]}, {versions}; {CONCURRENT} connections, asyncio's loop")
    for what in ("per_post", "per_event"):
        for name in TransportName:
            figures = [getattr(cost, what) for cost in costs[name]]
            print(f"{name:8} CPU us {what}: {statistics.median(figures):8.1f}")
        ratios = [
            getattr(slow, what) / getattr(fast, what)
            for slow, fast in zip(
                costs[TransportName.HTTPX], costs[TransportName.AIOHTTP], strict=True
            )
        ]
        print(
            f"httpx / aiohttp {what}: {statistics.median(ratios):.2f}"
            f" ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
