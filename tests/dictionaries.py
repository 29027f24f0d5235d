"""Chat entries as they are stored in numbers, each different, and a dictionary of their kind."""

from functools import cache

import zstandard

from proxy.core.codec import encode_header
from proxy.core.dictionaries import Dictionary
from proxy.core.entry import Entry, Form, Usage
from proxy.standin.chat import Choice, Completion
from proxy.standin.chat_forms import DONE, as_events, as_json
from proxy.standin.text import seed_of, token_texts

PREFIX = "magic_proxy:cache:"
STORED_AT = 1_800_000_000.0


def chat_key(number: int, prefix: str = PREFIX) -> str:
    """The store key of the entry of that number."""
    return f"{prefix}v1:chat:shared:{seed_of(b'key', b'%d' % number).hex()}"


def chat_entry(
    number: int,
    *,
    form: Form = Form.JSON,
    tokens: int = 30,
    lifetime_seconds: float = 600.0,
    prefix: str = PREFIX,
    stored_at: float = STORED_AT,
) -> Entry:
    """An answer of `tokens` words; the same number, the same entry."""
    words = tuple(token_texts(seed_of(b"%d" % number), tokens))
    counts = {"prompt_tokens": number, "completion_tokens": tokens, "total_tokens": number + tokens}
    identity = seed_of(b"id", b"%d" % number).hex()
    completion = Completion(
        id=f"chatcmpl-{identity[:29]}",
        created=1_800_000_000 + number,
        model="gpt-4o-2024-08-06",
        choices=(Choice(0, "stop", words),),
        usage=counts,
        top_logprobs=None,
        extra={},
    )
    if form is Form.JSON:
        payload = as_json(completion)
    else:
        payload = b"".join([*as_events(completion, include_usage=True), DONE])
    return Entry(
        key=chat_key(number, prefix),
        model="openai_gpt4_main",
        rule="chat",
        stored_at=stored_at,
        fresh_until=stored_at + lifetime_seconds,
        expires_at=stored_at + lifetime_seconds,
        form=form,
        status=200,
        headers=(
            (b"content-type", b"application/json"),
            (b"openai-organization", b"org-of-the-tests"),
            (b"openai-version", b"2020-10-01"),
            (b"x-upstream-request-id", f"req_{identity[32:]}".encode()),
        ),
        usage=Usage(**counts),
        payload=payload,
        profile="openai_gpt4_main",
        tags=("project:search",),
    )


def trained_on(numbers: range) -> Dictionary:
    """A dictionary out of the entries of these numbers."""
    pieces: list[bytes | bytearray | memoryview] = []
    for number in numbers:
        for form in Form:
            entry = chat_entry(number, form=form)
            pieces += (encode_header(entry), entry.payload)
    trained = zstandard.train_dictionary(8 * 1024, pieces)
    return Dictionary(trained.as_bytes(), trained_at=STORED_AT)


@cache
def a_dictionary() -> Dictionary:
    """One dictionary, the same for all tests of a process."""
    return trained_on(range(1_000, 1_100))
