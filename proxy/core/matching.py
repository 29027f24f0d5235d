"""Which rule a request falls under: file order, the first match wins."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from proxy.core.exact import LongInteger
from proxy.core.projection import Projection
from proxy.core.request import CacheableRequest
from proxy.core.rules import Rule, When
from proxy.core.wire import Endpoint, Headers, JsonValue

# What the API takes where a request names no temperature, or null.
DEFAULT_TEMPERATURE: Final = 1.0

# Clients choose model names: the memo is bounded in number and in length of names.
_MEMO_SIZE: Final = 1024
_MEMO_NAME_LENGTH: Final = 256


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rule whose endpoint and model fit, and what it takes from such requests."""

    rule: Rule
    projection: Projection


class RuleSet:
    """Compiled rules in file order. Never changes but for a bounded memo of look-ups."""

    __slots__ = ("_memo", "_projections", "rules")

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.rules: Final = tuple(rules)
        self._projections = [
            {endpoint: Projection.of(rule, endpoint) for endpoint in rule.endpoints}
            for rule in self.rules
        ]
        self._memo: dict[tuple[Endpoint, str], tuple[Candidate, ...]] = {}

    def match(self, request: CacheableRequest) -> Rule | None:
        """The rule that wins, or None."""
        found = self.find(request)
        return None if found is None else found.rule

    def find(self, request: CacheableRequest) -> Candidate | None:
        """The rule that wins with its projection, or None."""
        for candidate in self._candidates(request.endpoint, request.model):
            if _unmet(candidate.rule.when, request) is None:
                return candidate
        return None

    def passed_over(self, request: CacheableRequest) -> list[tuple[Rule, str]]:
        """The rules before the winner, each with the reason why it did not match."""
        passed: list[tuple[Rule, str]] = []
        for rule in self.rules:
            reason = why_not(rule, request)
            if reason is None:
                break
            passed.append((rule, reason))
        return passed

    def _candidates(self, endpoint: Endpoint, model: str) -> tuple[Candidate, ...]:
        found = self._memo.get((endpoint, model))
        if found is None:
            found = tuple(
                Candidate(rule, projections[endpoint])
                for rule, projections in zip(self.rules, self._projections, strict=True)
                if endpoint in projections and _names(rule, model)
            )
            if len(self._memo) >= _MEMO_SIZE:
                self._memo.clear()
            if len(model) <= _MEMO_NAME_LENGTH:
                self._memo[endpoint, model] = found
        return found


def why_not(rule: Rule, request: CacheableRequest) -> str | None:
    """Why `rule` does not match, in words for its author; None where it does."""
    if request.endpoint not in rule.endpoints:
        return f"it is not for the endpoint {request.endpoint.value}"
    if not _names(rule, request.model):
        return f"none of its model_names matches {request.model!r}"
    return _unmet(rule.when, request)


def _names(rule: Rule, model: str) -> bool:
    return any(name == model or fnmatchcase(model, name) for name in rule.model_names)


def _unmet(when: When, request: CacheableRequest) -> str | None:
    """The first predicate that does not hold, in words. Header values are not repeated in it."""
    fields = request.fields
    if when.max_temperature is not None:
        reason = _too_warm(fields.get("temperature"), when.max_temperature)
        if reason is not None:
            return reason
    if when.max_messages is not None or when.has_user_message is not None:
        messages = fields.get("messages", [])
        if not isinstance(messages, list):
            return "messages is not an array"
        reason = _wrong_messages(messages, when)
        if reason is not None:
            return reason
    for name, glob in when.headers:
        if not _header_matches(request.headers, name, glob):
            return f"no header {name} matches {glob!r}"
    return None


def _too_warm(temperature: JsonValue, limit: float) -> str | None:
    if temperature is None:
        if limit >= DEFAULT_TEMPERATURE:
            return None
        return f"temperature is absent, which counts as {DEFAULT_TEMPERATURE}, above {limit}"
    if type(temperature) not in {int, float, LongInteger}:
        return "temperature is not a number"
    assert isinstance(temperature, int | float)
    return None if temperature <= limit else f"temperature is above {limit}"


def _wrong_messages(messages: list[JsonValue], when: When) -> str | None:
    if when.max_messages is not None and len(messages) > when.max_messages:
        return f"it has {len(messages)} messages, more than {when.max_messages}"
    if when.has_user_message is not None:
        found = any(
            isinstance(message, dict) and message.get("role") == "user" for message in messages
        )
        if found is not when.has_user_message:
            return f"it has {'a' if found else 'no'} message of the role user"
    return None


def _header_matches(headers: Headers, name: str, glob: str) -> bool:
    wanted = name.lower().encode("latin-1", "replace")
    return any(
        fnmatchcase(value.decode("latin-1"), glob) for key, value in headers if key == wanted
    )
