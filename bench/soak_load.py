"""The mixed load of the soak: which requests are sent, drawn by chance from a few hot ones."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

from bench.checked import Ask
from bench.soak_rules import ADMIN_HEADER, ADMIN_KEY, MODELS, PROJECT_HEADER, TAGS_HEADER
from bench.soak_upstream import SLOW_MARK, STEADY_MARK

PROJECTS = ("apollo", "gemini", "mercury", "vostok")
TOPICS = ("engines", "orbits", "suits")
QUESTIONS = 40
ITEMS = 60
LARGEST_BATCH = 40
CROWD = (6, 20)
STEADY = "steady crowd"
CHAT_MODELS = tuple(model.name for model in MODELS.values() if not model.embeds)
EMBEDDERS = tuple(model.name for model in MODELS.values() if model.embeds)
CONTROLS = ("no-cache", "no-store", "max-age=1", "max-age=5", "only-if-cached")


class Load:
    """Draws requests; the same seed draws the same ones."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._fresh = count(1)
        self._weighted: tuple[tuple[Callable[[str], Ask], int], ...] = (
            (self.plain, 30),
            (self.stream, 26),
            (self.single, 10),
            (self.batch, 12),
            (self.leaving, 10),
            (self.controlled, 12),
        )

    def pause(self, rate: float) -> float:
        """Seconds until the next arrival, of `rate` in a second on average."""
        return self._chance.expovariate(rate)

    def one_of(self, choices: Sequence[str]) -> str:
        return self._chance.choice(choices)

    def between(self, low: float, high: float) -> float:
        return self._chance.uniform(low, high)

    def any(self, proxy: str) -> Ask:
        """One request of the mix."""
        makers, weights = zip(*self._weighted, strict=True)
        maker: Callable[[str], Ask] = self._chance.choices(makers, weights)[0]
        return maker(proxy)

    def plain(self, proxy: str) -> Ask:
        return self._chat("chat", proxy, self._question(), {})

    def stream(self, proxy: str) -> Ask:
        return self._chat("stream", proxy, self._question(), self._delivery(1.0))

    def single(self, proxy: str) -> Ask:
        return self._embed("embedding", proxy, 1)

    def batch(self, proxy: str) -> Ask:
        size = self._chance.choice([2, 3, 5, 8, 13, 21, LARGEST_BATCH])
        return self._embed("batch", proxy, size)

    def leaving(self, proxy: str) -> Ask:
        """A client that goes away at any moment, mostly with a question that nobody asked yet."""
        text = self._fresh_question() if self._chance.random() < 0.7 else self._question()
        after = self._chance.uniform(0.0, 0.45)
        return self._chat("leaving", proxy, text, self._delivery(0.5), leaves_after=after)

    def controlled(self, proxy: str) -> Ask:
        header = {"cache-control": self._chance.choice(CONTROLS)}
        if self._chance.random() < 0.2:
            return self._embed("controlled", proxy, 4, header)
        return self._chat("controlled", proxy, self._question(), self._delivery(0.4), header)

    def crowd(self, proxies: Sequence[str], *, steady: bool = False) -> Iterator[Ask]:
        """Equal requests on a cold key, in both forms, at all proxies; the model coalesces them.

        Those of a steady crowd would get the same answer from a second call; the first one streams.
        """
        kind, mark, model = "crowd", SLOW_MARK, self._chance.choice(SHARED_MODELS)
        if steady:
            kind, mark, model = STEADY, STEADY_MARK, "plain"
        text = mark + self._fresh_question()
        for at in range(self._chance.randint(*CROWD)):
            proxy, streams = proxies[at % len(proxies)], 1.0 if steady and at == 0 else 0.5
            yield self._chat(kind, proxy, text, self._delivery(streams), model=model)

    def _question(self) -> str:
        # Few are asked often, many seldom.
        number = min(int(self._chance.paretovariate(0.9)), QUESTIONS)
        return f"question {number}"

    def _fresh_question(self) -> str:
        return f"question that was never asked, {next(self._fresh)}"

    def _delivery(self, streams: float) -> dict[str, Any]:
        if self._chance.random() >= streams:
            return {}
        usage = {"stream_options": {"include_usage": True}}
        return {"stream": True} | (usage if self._chance.random() < 0.5 else {})

    def _admin(self) -> dict[str, str]:
        """Some ask as admins do: they are told the key."""
        return {ADMIN_HEADER: ADMIN_KEY} if self._chance.random() < 0.05 else {}

    def _chat(
        self,
        kind: str,
        proxy: str,
        text: str,
        delivery: dict[str, Any],
        header: dict[str, str] | None = None,
        *,
        model: str | None = None,
        leaves_after: float | None = None,
    ) -> Ask:
        model = model or self._chance.choice(CHAT_MODELS)
        # Who asks and about what follows from the question: an entry has the tags of the request
        # that it was stored for, so that requests for one entry must not differ in them.
        place = sum(text.encode())
        project, topic = PROJECTS[place % len(PROJECTS)], TOPICS[place % len(TOPICS)]
        message = {"role": "user", "content": f"{text} ({project}, {topic})"}
        body = {"model": model, "messages": [message], "temperature": MODELS[model].temperature}
        return Ask(
            kind,
            proxy,
            body | delivery,
            {PROJECT_HEADER: project, TAGS_HEADER: topic, **self._admin(), **(header or {})},
            leaves_after,
        )

    def _embed(self, kind: str, proxy: str, size: int, header: dict[str, str] | None = None) -> Ask:
        place = self._chance.randrange(len(PROJECTS))
        project, topic = PROJECTS[place], TOPICS[place % len(TOPICS)]
        numbers = [min(int(self._chance.paretovariate(0.6)), ITEMS) for _ in range(size)]
        items = [f"item {number} of {project}" for number in numbers]
        body: dict[str, Any] = {
            "model": self._chance.choice(EMBEDDERS),
            "input": items[0] if size == 1 and self._chance.random() < 0.5 else items,
        }
        if self._chance.random() < 0.5:
            body["encoding_format"] = self._chance.choice(["float", "base64"])
        return Ask(
            kind, proxy, body, {PROJECT_HEADER: project, TAGS_HEADER: topic, **(header or {})}
        )


# Those whose equal requests are one upstream call, whichever proxy they are sent to.
SHARED_MODELS = tuple(
    name
    for name in CHAT_MODELS
    if not MODELS[name].more.keys() & {"coalesce", "variants", "refresh_ahead"}
)
