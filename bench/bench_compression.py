"""What zstd makes of entries, and what it costs: from here come the codec's threshold and level.

    python -m bench.bench_compression [--turns 5]

Payloads are made up in the likeness of the real thing: prose of a Zipf-like vocabulary in chat
answers and SSE transcripts, normally distributed vectors as float and base64 embeddings. A column
of µs is the best of the turns; `share` is the compressed size as a share of the plain one.
"""

import argparse
import base64
import platform
import random
import struct
import timeit
from collections.abc import Callable
from functools import partial

import orjson
import zstandard

CHANCE = random.Random(7)
VOCABULARY = [
    "".join(CHANCE.choices("etaoinshrdlucmfwypvbgkjqxz", range(26, 0, -1), k=CHANCE.randint(2, 9)))
    for _ in range(6_000)
]
WEIGHTS = [1 / rank for rank in range(1, len(VOCABULARY) + 1)]


def prose(words: int) -> list[str]:
    return CHANCE.choices(VOCABULARY, WEIGHTS, k=words)


def token(length: int = 29) -> str:
    return "".join(
        CHANCE.choices("ABCDEFGHJKMNPQRSTVWXYZabcdefghjkmnpqrstvwxyz0123456789", k=length)
    )


def chat(words: int) -> bytes:
    message = {"role": "assistant", "content": " ".join(prose(words)), "refusal": None}
    details = {"cached_tokens": 0, "audio_tokens": 0}
    return orjson.dumps(
        {
            "id": f"chatcmpl-{token()}",
            "object": "chat.completion",
            "created": 1_800_000_000,
            "model": "gpt-4o-2026-08-06",
            "choices": [
                {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
            ],
            "usage": {
                "prompt_tokens": 19,
                "completion_tokens": words,
                "total_tokens": words + 19,
                "prompt_tokens_details": details,
                "completion_tokens_details": details | {"reasoning_tokens": 0},
            },
            "service_tier": "default",
            "system_fingerprint": f"fp_{token(10)}",
        }
    )


def transcript(words: int) -> bytes:
    head = {"id": f"chatcmpl-{token()}", "object": "chat.completion.chunk"}
    head |= {"created": "1800000000", "model": "gpt-4o-2026-08-06"}
    events = []
    for word in prose(words):
        delta = {"index": 0, "delta": {"content": f" {word}"}, "finish_reason": None}
        events.append(b"data: " + orjson.dumps(head | {"choices": [delta]}) + b"\n\n")
    return b"".join(events) + b"data: [DONE]\n\n"


def embedding(dimensions: int, *, as_base64: bool) -> bytes:
    raw = [CHANCE.gauss(0, dimensions**-0.5) for _ in range(dimensions)]
    packed = struct.pack(f"<{dimensions}f", *raw)
    floats = [float(f"{number:.8g}") for number in struct.unpack(f"<{dimensions}f", packed)]
    vector = base64.b64encode(packed).decode() if as_base64 else floats
    answer = {"object": "embedding", "index": 0, "embedding": vector}
    return orjson.dumps({"object": "list", "data": [answer], "model": "text-embedding-3-large"})


PAYLOADS: dict[str, Callable[[], bytes]] = {
    "chat, a line": lambda: chat(10),
    "chat, a paragraph": lambda: chat(80),
    "chat, half a page": lambda: chat(250),
    "chat, two pages": lambda: chat(1_000),
    "chat, a long one": lambda: chat(8_000),
    "SSE, 10 tokens": lambda: transcript(10),
    "SSE, 250 tokens": lambda: transcript(250),
    "SSE, 1,000 tokens": lambda: transcript(1_000),
    "embedding 256, float": lambda: embedding(256, as_base64=False),
    "embedding 1536, float": lambda: embedding(1_536, as_base64=False),
    "embedding 3072, float": lambda: embedding(3_072, as_base64=False),
    "embedding 1536, base64": lambda: embedding(1_536, as_base64=True),
    "embedding 3072, base64": lambda: embedding(3_072, as_base64=True),
}


def microseconds(work: Callable[[], object], turns: int) -> float:
    number = max(1, int(0.01 / max(timeit.timeit(work, number=3) / 3, 1e-7)))
    return min(timeit.repeat(work, number=number, repeat=turns)) / number * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    print(f"zstandard {zstandard.__version__}, Python {platform.python_version()}")
    print(f"{'payload':24}{'bytes':>9}  {'level':>5} {'share':>6} {'in µs':>8} {'out µs':>8}")
    decompressor = zstandard.ZstdDecompressor()
    for name, make in PAYLOADS.items():
        payload = make()
        for level in (-1, 1, 3, 6):
            compressor = zstandard.ZstdCompressor(level=level)
            frame = compressor.compress(payload)
            into = microseconds(partial(compressor.compress, payload), turns)
            out = microseconds(partial(decompressor.decompress, frame), turns)
            share = len(frame) / len(payload)
            print(f"{name:24}{len(payload):9,}  {level:5} {share:6.2f} {into:8.1f} {out:8.1f}")


if __name__ == "__main__":
    main()
