"""Whether an error says that the request is too long, or filtered, for this model. Pure.

OpenAI and Azure have codes for it; most others only say it in words. The spellings are those of
OpenAI, Azure, Anthropic, Bedrock, Gemini, Mistral, DeepSeek, DashScope, Cerebras, Groq, OpenRouter,
vLLM, llama.cpp and text-generation-inference.
"""

from typing import Final

from proxy.core.wire import Headers
from proxy.upstream.classify import LONGEST_BODY, error_places, plain
from proxy.upstream.verdict import Trouble

# Everything else is about something else, whatever it says.
TROUBLE_STATUSES: Final = frozenset({400, 403, 413, 422})

_FORBIDDEN: Final = 403

_CODES: Final = {
    "context_length_exceeded": Trouble.CONTEXT_WINDOW,
    "context_window_exceeded": Trouble.CONTEXT_WINDOW,
    "exceed_context_size_error": Trouble.CONTEXT_WINDOW,
    "prompt_too_long": Trouble.CONTEXT_WINDOW,
    "content_filter": Trouble.CONTENT_POLICY,
    "content_policy_violation": Trouble.CONTENT_POLICY,
    "data_inspection_failed": Trouble.CONTENT_POLICY,
    "moderation_blocked": Trouble.CONTENT_POLICY,
    "responsibleaipolicyviolation": Trouble.CONTENT_POLICY,
}

# Codes of a parameter that is too long by itself: no other model takes it.
_OTHER_CODES: Final = frozenset({"string_above_max_length", "array_above_max_length"})

# All parts of one line stand in the message.
_WORDS: Final = (
    (Trouble.CONTEXT_WINDOW, ("maximum context length",)),
    (Trouble.CONTEXT_WINDOW, ("maximum context limit",)),
    (Trouble.CONTEXT_WINDOW, ("maximum model length",)),
    (Trouble.CONTEXT_WINDOW, ("exceed context limit",)),
    (Trouble.CONTEXT_WINDOW, ("exceed", "context window")),
    (Trouble.CONTEXT_WINDOW, ("exceed", "context length")),
    (Trouble.CONTEXT_WINDOW, ("longer than the model's context length",)),
    (Trouble.CONTEXT_WINDOW, ("input tokens exceed the configured limit",)),
    (Trouble.CONTEXT_WINDOW, ("`inputs` tokens + `max_new_tokens` must be",)),
    (Trouble.CONTEXT_WINDOW, ("exceeds the available context size",)),
    (Trouble.CONTEXT_WINDOW, ("exceeds the maximum number of tokens allowed",)),
    (Trouble.CONTEXT_WINDOW, ("maximum input length is", "tokens")),
    (Trouble.CONTEXT_WINDOW, ("current length is", "while limit is")),
    (Trouble.CONTEXT_WINDOW, ("prompt is too long",)),
    (Trouble.CONTEXT_WINDOW, ("input is too long for requested model",)),
    (Trouble.CONTENT_POLICY, ("content management policy",)),
    (Trouble.CONTENT_POLICY, ("content filtering policy",)),
    (Trouble.CONTENT_POLICY, ("rejected as a result of", "safety system")),
    (Trouble.CONTENT_POLICY, ("violating our usage policy",)),
    (Trouble.CONTENT_POLICY, ("content exists risk",)),
    (Trouble.CONTENT_POLICY, ("requires moderation", "flagged")),
)


def trouble_of(status: int, headers: Headers, body: bytes) -> Trouble | None:
    """What the error is about; None where it is about neither.

    `headers` in any case, `body` as it came, at most `LONGEST_BODY` of it.
    """
    if status not in TROUBLE_STATUSES:
        return None
    lower = tuple((name.lower(), value) for name, value in headers)
    places = error_places(plain(lower, body[:LONGEST_BODY]))
    found = _by_code(places) or _by_words(places)
    # A long request is not forbidden: there the words are about something else.
    is_odd = status == _FORBIDDEN and found is Trouble.CONTEXT_WINDOW
    return None if is_odd else found


def _by_code(places: list[dict[str, object]]) -> Trouble | None:
    for place in places:
        for member in ("code", "type"):
            value = place.get(member)
            if isinstance(value, str) and (found := _CODES.get(value.strip().lower())) is not None:
                return found
    return None


def _by_words(places: list[dict[str, object]]) -> Trouble | None:
    codes = {place.get("code") for place in places if isinstance(place.get("code"), str)}
    if codes & _OTHER_CODES:
        return None
    for place in places:
        message = place.get("message")
        if not isinstance(message, str):
            continue
        said = message.lower()
        for trouble, parts in _WORDS:
            if all(part in said for part in parts):
                return trouble
    return None
