"""Answers in the likeness of the real thing, for measuring what can be compressed of them.

Two texts: prose out of the documentation that comes with Python, and the stand-in's words. What
dictionaries are trained with and what they are measured on come from different documents.
"""

import ast
import hashlib
import random
import re
import sysconfig
from collections.abc import Callable
from enum import Enum
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import TypeAlias

from proxy.core.entry import Entry, Form, Usage
from proxy.standin.chat import Choice, Completion
from proxy.standin.chat_forms import DONE, as_events, as_json
from proxy.standin.embeddings import embeddings_answer
from proxy.standin.script import PLAIN
from proxy.standin.text import token_texts

CHANCE = random.Random(1)


class Side(Enum):
    """Which of the documents: those to train with, or those to measure on."""

    TRAIN = 0
    TEST = 1


Text: TypeAlias = Callable[[int, Side], str]
Payload: TypeAlias = Callable[[int, Side], bytes]

_TOKEN = re.compile(r"\s?\w{1,6}|\s*[^\w\s]+|\s+")
_EVENT_BYTES = 290
_AROUND_BYTES = 800
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_OUTSIDE = {"site-packages", "test", "tests", "idle_test", "lib2to3"}


@cache
def _documents(side: Side) -> str:
    """Two thirds of the documents to train with, and a third to measure on."""
    found = dict(topics)
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if _OUTSIDE.isdisjoint(path.parts):
            found[str(path.relative_to(root))] = "\n\n".join(_docstrings(path))
    shuffled = sorted((hashlib.sha256(name.encode()).digest(), name) for name in found)
    return "\n\n".join(
        found[name] for digest, name in shuffled if (digest[0] >= 170) == (side is Side.TEST)
    )


def _docstrings(path: Path) -> list[str]:
    try:
        nodes = list(ast.walk(ast.parse(path.read_bytes())))
    except SyntaxError:
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return [text for node in nodes if isinstance(node, kinds) and (text := ast.get_docstring(node))]


def prose(size: int, side: Side) -> str:
    """Any `size` characters in a row of the documentation."""
    text = _documents(side)
    at = CHANCE.randrange(len(text) - size)
    return text[at : at + size]


def words(size: int, _: Side) -> str:
    """The stand-in's words, of which there are 72."""
    return "".join(token_texts(CHANCE.randbytes(8), size // 7 + 1))[:size]


def identifier(length: int) -> str:
    """Letters and digits by chance."""
    return "".join(CHANCE.choices(_LETTERS, k=length))


def _completion(tokens: tuple[str, ...]) -> Completion:
    said, asked = len(tokens), CHANCE.randrange(10, 3_000)
    details = {"cached_tokens": CHANCE.choice([0, 0, 1024]), "audio_tokens": 0}
    return Completion(
        id=f"chatcmpl-{identifier(29)}",
        created=1_800_000_000 + CHANCE.randrange(10**7),
        model=CHANCE.choice(["gpt-4o-2024-08-06", "gpt-4o-mini-2024-07-18", "gpt-4.1-2025-04-14"]),
        choices=(Choice(0, "stop", tokens),),
        usage={
            "prompt_tokens": asked,
            "completion_tokens": said,
            "total_tokens": asked + said,
            "prompt_tokens_details": details,
        },
        top_logprobs=None,
        extra={"system_fingerprint": f"fp_{CHANCE.choice(['a1b2c3', '0f1e2d', '99aabb'])}"},
    )


def chat_json(text: Text) -> Payload:
    """Chat answers as one document."""
    return lambda size, side: as_json(
        _completion(tuple(_TOKEN.findall(text(max(1, size - _AROUND_BYTES), side))))
    )


def chat_sse(text: Text) -> Payload:
    """Chat answers as events, one for each token."""

    def made(size: int, side: Side) -> bytes:
        count = max(1, (size - _AROUND_BYTES) // _EVENT_BYTES)
        tokens = tuple(_TOKEN.findall(text(8 * count, side)))[:count]
        return b"".join([*as_events(_completion(tokens), include_usage=True), DONE])

    return made


def embedding(encoding: str) -> Payload:
    """One vector of about that size: 12.7 bytes for a number as float, 5.4 as base64."""
    bytes_each = {"float": 12.7, "base64": 5.4}[encoding]

    def made(size: int, _: Side) -> bytes:
        request = {
            "model": "text-embedding-3-small",
            "input": identifier(20),
            "dimensions": max(1, int((size - 130) / bytes_each)),
            "encoding_format": encoding,
        }
        return embeddings_answer(request, PLAIN)

    return made


def entry(payload: bytes, form: Form = Form.JSON, endpoint: str = "chat") -> Entry:
    """The entry that a proxy with several tenants makes of such an answer of OpenAI's."""
    scope = CHANCE.choice(["team-a", "team-b", "team-c"])
    return Entry(
        key=f"magic_proxy:cache:v1:{endpoint}:{scope}:{CHANCE.randbytes(32).hex()}",
        model="openai_gpt4_main",
        rule="main",
        stored_at=1_800_000_000.0 + CHANCE.random(),
        fresh_until=1_800_003_600.0,
        expires_at=1_800_003_600.0,
        form=form,
        status=200,
        headers=(
            (b"content-type", b"application/json"),
            (b"openai-organization", b"org-abcdefghij0123456789abcd"),
            (b"openai-processing-ms", b"%d" % CHANCE.randrange(300, 9_000)),
            (b"openai-version", b"2020-10-01"),
            (b"x-upstream-request-id", b"req_" + CHANCE.randbytes(16).hex().encode()),
        ),
        usage=Usage(CHANCE.randrange(3_000), CHANCE.randrange(3_000), CHANCE.randrange(6_000)),
        payload=payload,
        profile="openai_gpt4_main",
        tags=(f"project:{CHANCE.choice('abc')}",),
        tenant=scope,
        generation=1_799_999_000_123,
        took_seconds=CHANCE.random() * 9,
    )
