"""The entry: one stored answer, with what is needed to judge and to replay it."""

from dataclasses import dataclass
from enum import StrEnum

from proxy.core.values import value
from proxy.core.wire import Headers


class Form(StrEnum):
    """The form in which the payload was recorded."""

    JSON = "json"
    SSE = "sse"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the upstream counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


@value(frozen=True, slots=True)
class Entry:
    """A stored answer.

    `key` is the full store key. Times are wall-clock seconds: fresh until `fresh_until`, gone at
    `expires_at`. `payload` is the body without content coding; `usage` is None where the upstream
    gave none. `profile` names the model profile that answered, `fallback` says that it was not
    the first of its chain. `generation` is the number of the last purge known when its request
    began; `took_seconds` is what the upstream took for it; `tenant` is "" where there is none.
    """

    key: str
    model: str
    rule: str
    stored_at: float
    fresh_until: float
    expires_at: float
    form: Form
    status: int
    headers: Headers
    usage: Usage | None
    payload: bytes
    profile: str = ""
    fallback: bool = False
    tags: tuple[str, ...] = ()
    tenant: str = ""
    generation: int = 0
    took_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EntryMeta:
    """What a purge asks of an entry; the members are those of `Entry`."""

    key: str
    model: str
    rule: str
    stored_at: float
    tags: tuple[str, ...] = ()
    tenant: str = ""
    generation: int = 0
