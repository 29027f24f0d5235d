"""Training: what comes of entries that have much, little or nothing in common."""

import dataclasses
import random

import pytest

from proxy.core.codec import COMPRESS_ABOVE_BYTES, decode, encode
from proxy.core.dictionaries import DICTIONARY_BYTES, LARGEST_PAYLOAD_BYTES
from proxy.core.entry import Entry, Form
from proxy.core.training import (
    FEWEST_SAMPLES,
    MOST_SAMPLES,
    SAMPLE_PAYLOAD_BYTES,
    WORTHWHILE_SHARE,
    Reservoir,
    Trained,
    train,
)
from proxy.standin.text import token_texts
from tests.dictionaries import STORED_AT, chat_entry, trained_on


def mixed(numbers: range) -> list[Entry]:
    return [chat_entry(number, form=list(Form)[number % 2]) for number in numbers]


def noise(numbers: range, size: int) -> list[Entry]:
    chance = random.Random(5)
    return [
        dataclasses.replace(chat_entry(number), headers=(), tags=(), payload=chance.randbytes(size))
        for number in numbers
    ]


def trained(samples: list[Entry], **members: object) -> Trained:
    return train(
        samples,
        trained_at=STORED_AT,
        compress_above_bytes=COMPRESS_ABOVE_BYTES,
        **members,  # type: ignore[arg-type]  # a test's short form
    )


def test_alike_answers_make_a_dictionary_that_helps_with_others_of_their_kind() -> None:
    result = trained(mixed(range(FEWEST_SAMPLES)))
    dictionary = result.dictionary
    assert dictionary is not None
    assert result.share is not None
    assert result.share < WORTHWHILE_SHARE
    assert dictionary.trained_at == STORED_AT
    assert len(dictionary.content) <= DICTIONARY_BYTES
    for entry in mixed(range(5_000, 5_020)):
        value = encode(entry, dictionary=dictionary)
        assert len(value) < 0.6 * len(encode(entry))
        assert decode(value, entry.key, {dictionary.id: dictionary}) == entry


def test_entries_with_nothing_but_a_little_in_common_are_not_worth_one() -> None:
    result = trained(noise(range(FEWEST_SAMPLES), 5_000))
    assert result.dictionary is None
    assert result.share is not None
    assert result.share > WORTHWHILE_SHARE


def test_the_gain_is_that_of_entries_it_was_not_trained_with() -> None:
    # Most of these it learns by heart: they would say that it leaves a third.
    known = noise(range(40), 200)
    result = trained(known)
    assert result.dictionary is not None
    assert result.share is not None
    left = sorted(len(encode(entry, dictionary=result.dictionary)) for entry in known)
    plain = len(encode(known[0]))
    assert left[20] < 0.3 * plain
    assert result.share > 0.6


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_too_few_make_none(count: int) -> None:
    assert trained(mixed(range(count))).dictionary is None


def test_entries_without_payload_make_none_or_a_sound_one() -> None:
    bare = [dataclasses.replace(chat_entry(number), payload=b"") for number in range(200)]
    dictionary = trained(bare).dictionary
    if dictionary is not None:
        value = encode(bare[0], dictionary=dictionary)
        assert decode(value, bare[0].key, {dictionary.id: dictionary}) == bare[0]


def test_one_that_is_as_good_is_not_replaced() -> None:
    mingled = mixed(range(3 * FEWEST_SAMPLES))
    samples = [entry for place, entry in enumerate(mingled) if place % 3 == 0]
    present = trained([entry for place, entry in enumerate(mingled) if place % 3 == 1]).dictionary
    result = trained(samples, present=present)
    assert result.dictionary is None
    assert result.share is not None
    assert 0.8 < result.share < 1.2


def test_one_that_fits_no_more_is_replaced() -> None:
    notice = "".join(token_texts(b"a notice under every answer from some day on", 120)).encode()
    changed = [
        dataclasses.replace(entry, payload=entry.payload + notice)
        for entry in mixed(range(FEWEST_SAMPLES))
    ]
    result = trained(changed, present=trained_on(range(100)))
    assert result.dictionary is not None
    assert result.share is not None
    assert result.share < WORTHWHILE_SHARE


def test_the_same_samples_make_the_same_dictionary() -> None:
    one, other = (trained(mixed(range(FEWEST_SAMPLES))).dictionary for _ in range(2))
    assert one is not None
    assert other is not None
    assert one.content == other.content


def test_a_reservoir_is_bounded_and_fair() -> None:
    chance = random.Random(8)
    kept: list[int] = []
    for _ in range(40):
        reservoir = Reservoir(most=20)
        for number in range(200):
            reservoir.offer(chat_entry(number, tokens=1), chance.randrange)
        assert len(reservoir.samples) == 20
        kept += [entry.usage.prompt_tokens for entry in reservoir.samples if entry.usage]
    assert 85 < sum(kept) / len(kept) < 115, "those that came first count no more than the last"


def test_a_reservoir_holds_the_beginnings_of_payloads_only() -> None:
    reservoir = Reservoir()
    whole = b"x" * LARGEST_PAYLOAD_BYTES
    for payload in (whole, whole + b"x"):
        reservoir.offer(dataclasses.replace(chat_entry(1), payload=payload), int)
    (sample,) = reservoir.samples
    assert sample.payload == whole[:SAMPLE_PAYLOAD_BYTES]


def test_a_reservoir_is_enough_when_it_holds_the_fewest_and_begins_anew_when_emptied() -> None:
    reservoir = Reservoir()
    for number in range(MOST_SAMPLES + 10):
        assert reservoir.is_enough == (number >= FEWEST_SAMPLES)
        reservoir.offer(chat_entry(number, tokens=1), lambda n: n - 1)
    assert len(reservoir.samples) == MOST_SAMPLES
    reservoir.empty()
    assert not reservoir.is_enough
    assert reservoir.samples == ()
