"""`magic-proxy demo`: OpenAI's SDK, the proxy and a stand-in upstream, all on this machine."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proxy.clock import Clock, SystemClock
from proxy.edge.app import create_app
from proxy.settings.models import Settings
from proxy.standin import Pace, StandIn, serve_in_thread, start_standin
from proxy.workers.server import server_config

if TYPE_CHECKING:
    from openai import OpenAI

# About what a small hosted model takes.
REALISTIC = Pace(first_seconds=0.35, token_seconds=0.012)

RIVERS: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "Name three rivers, and what they are known for."}],
}
HAIKU: dict[str, Any] = {
    "model": "gpt-4o-mini",
    "messages": [
        {"role": "system", "content": "You write haiku."},
        {"role": "user", "content": "About a cache that is warm."},
    ],
}
WEATHER: dict[str, Any] = {
    "model": "gpt-4o",
    "messages": [{"role": "user", "content": "What will the weather be in Lisbon?"}],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                    "required": ["city", "days"],
                },
            },
        }
    ],
}
PASSAGES: dict[str, Any] = {
    "model": "text-embedding-3-small",
    "input": [
        "A cache answers twice.",
        "A proxy stands between.",
        "A token saved is a token earned.",
    ],
}
COLOURS = {"HIT": "green", "MISS": "yellow", "STALE": "cyan", "BYPASS": "magenta", "ERROR": "red"}


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back: the headers that tell what the cache did, and the tokens of the answer."""

    x_cache: str
    cache_status: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the demo, and what the cache is expected to say."""

    title: str
    expected: str
    call: Callable[["OpenAI"], Answered]


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was taken, and how long it took, in seconds."""

    step: Step
    answered: Answered
    seconds: float


def chat(request: dict[str, Any]) -> Callable[["OpenAI"], Answered]:
    """A chat completion in one piece."""

    def call(client: "OpenAI") -> Answered:
        raw = client.chat.completions.with_raw_response.create(**request)
        return _answered(raw.headers, raw.parse().usage)

    return call


def streamed(request: dict[str, Any]) -> Callable[["OpenAI"], Answered]:
    """The same, token by token; it asks for the usage chunk, to count tokens."""

    def call(client: "OpenAI") -> Answered:
        raw = client.chat.completions.with_raw_response.create(
            **request, stream=True, stream_options={"include_usage": True}
        )
        usage = None
        for chunk in raw.parse():
            usage = chunk.usage or usage
        return _answered(raw.headers, usage)

    return call


def embeddings(request: dict[str, Any]) -> Callable[["OpenAI"], Answered]:
    """Embeddings, in base64 as the SDK asks for them."""

    def call(client: "OpenAI") -> Answered:
        raw = client.embeddings.with_raw_response.create(**request)
        return _answered(raw.headers, raw.parse().usage)

    return call


STEPS = (
    Step("Chat", "MISS", chat(RIVERS)),
    Step("Chat, the same again", "HIT", chat(RIVERS)),
    Step("The same, now streamed", "HIT", streamed(RIVERS)),
    Step("Another chat, streamed", "MISS", streamed(HAIKU)),
    Step("Streamed again", "HIT", streamed(HAIKU)),
    Step("The same, not streamed", "HIT", chat(HAIKU)),
    Step("Chat with tools", "MISS", chat(WEATHER)),
    Step("With tools again", "HIT", chat(WEATHER)),
    Step("With tools, streamed", "HIT", streamed(WEATHER)),
    Step("Three embeddings", "MISS", embeddings(PASSAGES)),
    Step("The same three again", "HIT", embeddings(PASSAGES)),
)


def run_demo(
    *, console: Console | None = None, pace: Pace = REALISTIC, clock: Clock | None = None
) -> int:
    """Run the demo and print its table; the exit code is 0 if every call went as expected."""
    console = console or Console()
    if find_spec("openai") is None:
        console.print(
            "The demo calls the proxy with OpenAI's own SDK, which is not installed here.\n"
            "Install it with [bold]pip install openai[/bold] and try again; "
            "in a checkout, [bold]make demo[/bold] does both."
        )
        return 1
    done: list[Done] = []
    with start_standin(StandIn(pace=pace)) as upstream:
        settings = Settings.model_validate(
            {
                "server": {"access_log": False},
                "store": "memory",
                "upstreams": {"standin": {"base_url": upstream.base_url}},
            }
        )
        with serve_in_thread(server_config(create_app(settings), settings)) as server:
            console.print(f"A stand-in for OpenAI's API answers on {upstream.url},")
            console.print(f"and the proxy in front of it on {server.url}.\n")
            with console.status("Calling …"):
                done.extend(_take(STEPS, f"{server.url}/v1", clock or SystemClock()))
        sent = len(upstream.app.requests)
    console.print(_table(done))
    console.print(_totals(done, sent))
    return _verdict(done, console)


def _take(steps: Iterable[Step], base_url: str, clock: Clock) -> Iterable[Done]:
    # A dependency of the demo alone: run_demo has made sure that it is there.
    from openai import OpenAI  # noqa: PLC0415 - not a dependency of the product

    with OpenAI(base_url=base_url, api_key="sk-demo", max_retries=0, timeout=60.0) as client:
        for step in steps:
            begun = clock.monotonic()
            answered = step.call(client)
            yield Done(step, answered, clock.monotonic() - begun)


def _answered(headers: Any, usage: Any) -> Answered:
    return Answered(
        x_cache=headers.get("x-cache", "?"),
        cache_status=headers.get("cache-status", ""),
        tokens=usage.total_tokens if usage else 0,
    )


def _saved(done: Done) -> int:
    return done.answered.tokens if done.answered.x_cache == "HIT" else 0


def _table(taken: Iterable[Done]) -> Table:
    table = Table()
    table.add_column("Call")
    table.add_column("X-Cache")
    table.add_column("Time", justify="right")
    table.add_column("Tokens", justify="right")
    table.add_column("Saved", justify="right")
    for done in taken:
        told = done.answered.x_cache
        table.add_row(
            done.step.title,
            Text(told, style=COLOURS.get(told, "red")),
            f"{done.seconds * 1000:,.1f} ms",
            str(done.answered.tokens),
            str(_saved(done) or "-"),
        )
    return table


def _totals(taken: list[Done], sent: int) -> str:
    hits = [done for done in taken if done.answered.x_cache == "HIT"]
    misses = [done for done in taken if done.answered.x_cache != "HIT"]
    tokens = sum(done.answered.tokens for done in taken)
    saved = sum(map(_saved, taken))
    line = (
        f"{len(taken)} calls, {sent} of them sent upstream; "
        f"{saved} of {tokens} tokens saved ({saved / max(tokens, 1):.0%})."
    )
    if hits and misses:
        line += f" A miss took {_mean_ms(misses):,.0f} ms, a hit {_mean_ms(hits):,.1f} ms."
    return line


def _mean_ms(taken: list[Done]) -> float:
    return 1000 * sum(done.seconds for done in taken) / len(taken)


def _verdict(taken: list[Done], console: Console) -> int:
    wrong = [done for done in taken if done.answered.x_cache != done.step.expected]
    for done in wrong:
        console.print(
            f"[red]Expected {done.step.expected}[/red]: {done.step.title}: "
            f"{done.answered.cache_status}"
        )
    return 1 if wrong else 0
