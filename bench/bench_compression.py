"""What zstd makes of entries, and what it costs: from here come thresholds, level and dictionaries.

    python -m bench.bench_compression [--turns 3] [--samples 24] [--write]

`left` is the size after compression as a share of the size before; µs in and out are CPU time, the
best of the turns, for one of `--samples` different payloads. Dictionaries are trained on other
texts than they are measured on, with payloads of all sizes.
"""

import argparse
import time
import timeit
from collections.abc import Callable, Sequence
from functools import partial

import zstandard

from bench.compression_answers import (
    CHANCE,
    Payload,
    Side,
    chat_json,
    chat_sse,
    embedding,
    entry,
    prose,
    words,
)
from bench.machine import described
from bench.report import publish, table
from proxy.core.codec import COMPRESS_ABOVE_BYTES, decode, encode, encode_header
from proxy.core.dictionaries import DICTIONARY_BYTES, Dictionary
from proxy.core.entry import Entry, Form
from proxy.core.training import MOST_SAMPLES, SAMPLE_PAYLOAD_BYTES, Reservoir, train

SIZES = (700, 2_000, 8_000, 60_000)
KINDS: dict[str, Payload] = {
    "chat JSON, prose": chat_json(prose),
    "chat JSON, few words": chat_json(words),
    "chat SSE, prose": chat_sse(prose),
    "embedding, float": embedding("float"),
    "embedding, base64": embedding("base64"),
}
TRAINED_BYTES = 1_000_000
KILOBYTES = (4, 16, 64)


def microseconds(work: Callable[[], object], turns: int) -> float:
    """CPU time of one call, the best of the turns."""
    number = max(1, int(0.01 / max(timeit.timeit(work, number=2) / 2, 1e-7)))
    timed = timeit.repeat(work, timer=time.process_time, number=number, repeat=turns)
    return min(timed) / number * 1e6


def any_size() -> int:
    """Short answers are frequent, long ones are not."""
    return int(min(60_000, max(600, CHANCE.lognormvariate(7.6, 0.9))))


def training_payloads(make: Payload) -> list[bytes]:
    """As many as make up `TRAINED_BYTES`, cut as the proxy cuts them."""
    found: list[bytes] = []
    while sum(map(len, found)) < TRAINED_BYTES:
        found.append(make(any_size(), Side.TRAIN)[:SAMPLE_PAYLOAD_BYTES])
    return found


def trained(pieces: Sequence[bytes], size: int) -> bytes:
    return zstandard.train_dictionary(size, list(pieces)).as_bytes()


def payload_cell(
    payloads: Sequence[bytes], level: int, dictionary: bytes | None, turns: int
) -> str:
    """`left in/out` of payloads alone, with bare zstd."""
    data = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    if data is not None:
        data.precompute_compress(level=level)
    compressor = zstandard.ZstdCompressor(level=level, dict_data=data)
    decompressor = zstandard.ZstdDecompressor(dict_data=data)
    frames = [compressor.compress(payload) for payload in payloads]
    left = sum(map(len, frames)) / sum(map(len, payloads))
    into = microseconds(lambda: [compressor.compress(payload) for payload in payloads], turns)
    out = microseconds(lambda: [decompressor.decompress(frame) for frame in frames], turns)
    return f"{left:.3f} {into / len(payloads):.1f}/{out / len(payloads):.1f}"


def payloads_table(turns: int, samples: int) -> str:
    """Bare zstd: levels, and dictionaries of three sizes."""
    head = ["payload", "bytes", "level 1", "level 2", "level 3"]
    head += [f"{size} KB, level 1" for size in KILOBYTES]
    head += [f"16 KB, level {level}" for level in (2, 3)]
    rows = []
    for name, make in KINDS.items():
        pieces = training_payloads(make)
        dictionaries = {size: trained(pieces, size * 1024) for size in KILOBYTES}
        for size in SIZES:
            payloads = [make(size, Side.TEST) for _ in range(samples)]
            cell = partial(payload_cell, payloads, turns=turns)
            row = [name, f"{sum(map(len, payloads)) // samples:,}"]
            row += [cell(level=level, dictionary=None) for level in (1, 2, 3)]
            row += [cell(level=1, dictionary=dictionaries[size]) for size in KILOBYTES]
            row += [cell(level=level, dictionary=dictionaries[16]) for level in (2, 3)]
            rows.append(row)
    return "`left in/out`, payloads alone:\n\n" + table(head, rows)


def entry_cell(
    entries: Sequence[Entry], above: int, dictionary: Dictionary | None, turns: int
) -> list[str]:
    """Bytes, and µs in and out, of whole entries through the codec."""
    loaded = {dictionary.id: dictionary} if dictionary else {}

    def encoded() -> list[bytes]:
        return [encode(each, compress_above_bytes=above, dictionary=dictionary) for each in entries]

    values = encoded()
    pairs = [(value, each.key) for value, each in zip(values, entries, strict=True)]
    assert [decode(value, key, loaded) for value, key in pairs] == list(entries)
    into = microseconds(encoded, turns) / len(entries)
    out = microseconds(lambda: [decode(value, key, loaded) for value, key in pairs], turns)
    stored = sum(map(len, values)) / len(entries)
    return [f"{stored:,.0f}", f"{into:.1f}/{out / len(entries):.1f}"]


def entries_table(turns: int, samples: int) -> str:
    """Whole entries: one dictionary for both forms, as the proxy trains it."""
    forms = {Form.JSON: chat_json(prose), Form.SSE: chat_sse(prose)}
    reservoir = Reservoir()
    for _ in range(MOST_SAMPLES // 2):
        for form, make in forms.items():
            reservoir.offer(entry(make(any_size(), Side.TRAIN), form), CHANCE.randrange)
    result = train(reservoir.samples, trained_at=0.0, compress_above_bytes=COMPRESS_ABOVE_BYTES)
    assert result.dictionary is not None
    head = ["entry", "payload", "header", "plain", "in/out", "zstd above 2 KB", "in/out"]
    head += ["dictionary", "in/out", "its header", "its payload"]
    rows = []
    for form, make in forms.items():
        for size in (*SIZES[:3], 16_000, SIZES[3]):
            entries = [entry(make(size, Side.TEST), form) for _ in range(samples)]
            frames = result.dictionary.frames
            header = sum(len(encode_header(each)) for each in entries) / samples
            small_header = sum(len(frames.compress(encode_header(each))) for each in entries)
            small = sum(len(frames.compress(each.payload)) for each in entries)
            payload = sum(len(each.payload) for each in entries) / samples
            rows.append(
                [
                    f"chat, {form.value}",
                    f"{payload:,.0f}",
                    f"{header:,.0f}",
                    *entry_cell(entries, 2**30, None, turns),
                    *entry_cell(entries, COMPRESS_ABOVE_BYTES, None, turns),
                    *entry_cell(entries, COMPRESS_ABOVE_BYTES, result.dictionary, turns),
                    f"{small_header / samples:,.0f}",
                    f"{small / samples:,.0f}",
                ]
            )
    return "Bytes of whole entries, and µs in/out through the codec:\n\n" + table(head, rows)


def embeddings_table() -> str:
    """What a dictionary would make of whole entries of embeddings."""
    sizes = {
        ("float", 256): 3_380,
        ("float", 1_536): 19_640,
        ("base64", 256): 1_510,
        ("base64", 1_536): 8_420,
    }
    rows = []
    for (encoding, dimensions), size in sizes.items():
        make = embedding(encoding)
        payloads = [make(size, Side.TRAIN) for _ in range(MOST_SAMPLES)]
        known = [entry(payload, endpoint="embeddings") for payload in payloads]
        result = train(known, trained_at=0.0, compress_above_bytes=COMPRESS_ABOVE_BYTES)
        rows.append([f"{encoding}, {dimensions:,} numbers", f"{result.share:.2f}"])
    return (
        "What a dictionary would leave of what whole entries of embeddings take without one:\n\n"
        + table(["embedding", "left"], rows)
    )


def training_table() -> str:
    """How many samples, how long, and what comes of it."""
    rows = []
    make = chat_json(prose)
    test = [entry(make(2_000, Side.TEST)) for _ in range(100)]
    for count in (16, 32, 64, 128, 256, 1_024):
        known = [entry(make(any_size(), Side.TRAIN)) for _ in range(count)]
        pieces = [p for e in known for p in (encode_header(e), e.payload[:SAMPLE_PAYLOAD_BYTES])]
        begun = time.process_time()
        content = trained(pieces, DICTIONARY_BYTES)
        seconds = time.process_time() - begun
        dictionary = Dictionary(content, trained_at=0.0)
        left = sum(len(encode(each, dictionary=dictionary)) for each in test)
        plain = sum(len(encode(each, compress_above_bytes=2**30)) for each in test)
        size = sum(map(len, pieces)) // 1_000
        rows.append([f"{count:,}", f"{size:,}", f"{seconds * 1000:.0f}", f"{left / plain:.3f}"])
    head = ["entries", "KB", "CPU ms", "left of entries of 2 KB"]
    return "Training one dictionary of 16 KB:\n\n" + table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    command = f"`python -m bench.bench_compression --turns {given.turns}`"
    parts = [
        f"{command}: {described('zstandard')}",
        entries_table(given.turns, given.samples),
        payloads_table(given.turns, given.samples),
        embeddings_table(),
        training_table(),
    ]
    publish("compression", "\n\n".join(parts), write=given.write)


if __name__ == "__main__":
    main()
