"""What the clients of an hour of chaos ask for, drawn by chance."""

import random
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from bench.chaos_rules import MODELS
from bench.checked import Ask

QUESTIONS, ITEMS = 60, 80
CHAT_MODELS = tuple(model.name for model in MODELS.values() if not model.embeds)
EMBEDDERS = tuple(model.name for model in MODELS.values() if model.embeds)
HURRY_HEADER = "x-request-timeout"
_FRESH_SHARE = 0.25
_HURRIES: Mapping[str, float] = {"0.6": 0.6, "800ms": 0.8, "1.2s": 1.2, "2": 2.0}


class ChaosLoad:
    """Draws requests; the same seed draws the same ones."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._chance = random.Random(seed)
        self._fresh = count(1)
        self._weighted: tuple[tuple[Callable[[], Ask], int], ...] = (
            (self._plain, 24),
            (self._streamed, 24),
            (self._single, 9),
            (self._batch, 9),
            (self._response, 8),
            (self._models, 6),
            (self._leaving, 10),
            (self._hurried, 10),
        )

    def pause(self, mean_seconds: float) -> float:
        """How long a client thinks."""
        return self._chance.expovariate(1 / mean_seconds)

    def any(self) -> Ask:
        """One request of the mix."""
        makers, weights = zip(*self._weighted, strict=True)
        maker: Callable[[], Ask] = self._chance.choices(makers, weights)[0]
        return maker()

    def _plain(self) -> Ask:
        return self._chat("chat", {})

    def _streamed(self) -> Ask:
        return self._chat("stream", self._delivery(1.0))

    def _single(self) -> Ask:
        return self._embed("embedding", 1)

    def _batch(self) -> Ask:
        return self._embed("batch", self._chance.choice([2, 3, 5, 8, 13]))

    def _response(self) -> Ask:
        body = {"model": "whatever", "input": self._question()}
        return Ask("responses", "", body, path="/responses")

    def _models(self) -> Ask:
        return Ask("models", "", {}, path="/models")

    def _leaving(self) -> Ask:
        after = self._chance.uniform(0.0, 0.45)
        return self._chat("leaving", self._delivery(0.6), leaves_after=after)

    def _hurried(self) -> Ask:
        header = {HURRY_HEADER: self._chance.choice(list(_HURRIES))}
        return self._chat("hurried", self._delivery(0.5), header)

    def _question(self) -> str:
        if self._chance.random() < _FRESH_SHARE:
            return f"question that was never asked, {next(self._fresh)} of {self._seed}"
        # Few are asked often, many seldom.
        return f"question {min(int(self._chance.paretovariate(0.7)), QUESTIONS)}"

    def _delivery(self, streams: float) -> dict[str, Any]:
        if self._chance.random() >= streams:
            return {}
        usage = {"stream_options": {"include_usage": True}}
        return {"stream": True} | (usage if self._chance.random() < 0.5 else {})

    def _chat(
        self,
        kind: str,
        delivery: dict[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        leaves_after: float | None = None,
    ) -> Ask:
        message = {"role": "user", "content": self._question()}
        model = self._chance.choice(CHAT_MODELS)
        body = {"model": model, "messages": [message], "temperature": 0.0}
        return Ask(kind, "", body | delivery, headers or {}, leaves_after)

    def _embed(self, kind: str, size: int) -> Ask:
        numbers = [min(int(self._chance.paretovariate(0.4)), ITEMS) for _ in range(size)]
        items = [f"item {number}" for number in numbers]
        body: dict[str, Any] = {
            "model": self._chance.choice(EMBEDDERS),
            "input": items[0] if size == 1 and self._chance.random() < 0.5 else items,
        }
        if self._chance.random() < 0.5:
            body["encoding_format"] = self._chance.choice(["float", "base64"])
        return Ask(kind, "", body)


def hurry_of(ask: Ask) -> float | None:
    """The seconds that a client gives for the whole answer, if it says so."""
    return _HURRIES.get(ask.headers.get(HURRY_HEADER, ""))
