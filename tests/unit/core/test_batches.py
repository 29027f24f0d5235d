"""B31: an answer to several inputs, cut into answers to one, and those joined: no byte of a vector
is written anew."""

from typing import Any

import orjson
import pytest

from proxy.core.batches import Cut, Opener, Piece, cut, joined
from proxy.core.embeddings import BASE64, FLOAT, NotAVector
from proxy.core.recording import NotStored

# Numbers, members and white space as no serialiser of ours would write them.
ODD = b""" {
  "id": "e-1",
  "usage": {"prompt_tokens": 5, "total_tokens": 5, "cost": 1.50},
  "data": [
    {"embedding" : [ 1.0, 2e0, -0.50 ], "sparse": {"a]": [0.10]}, "index": 1, "object": "embedding"},
    {"object": "embedding", "index": 0 , "embedding":[3.10,4.00],"note":"\\u00e9 \\"embedding\\": [1]"}
  ],
  "model": "m\\u0061", "object": "list", "created": 1E3
} """


def made(*vectors: Any, **members: Any) -> bytes:
    rows = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    return orjson.dumps({"object": "list", "data": rows, "model": "m", **members})


def good(body: bytes, count: int) -> Cut:
    found = cut(body, count)
    assert isinstance(found, Cut), found
    return found


def opened(payload: bytes, encoding: str = FLOAT) -> Piece:
    piece = Opener().open(payload, encoding)
    assert piece is not None
    return piece


def test_B31_rows_come_in_the_order_of_their_indices() -> None:
    found = good(ODD, 2)
    assert not found.in_order
    assert found.vectors == [b"[3.10,4.00]", b"[ 1.0, 2e0, -0.50 ]"]
    assert good(made([1.0], [2.0]), 2).in_order


def test_B31_an_item_alone_keeps_every_byte_but_index_and_usage() -> None:
    assert good(ODD, 2).alone(1, {"total_tokens": 3}) == (
        b'{"id":"e-1","data":[{"embedding" : [ 1.0, 2e0, -0.50 ], "sparse": {"a]": [0.10]},'
        b' "index": 0, "object": "embedding"}],"model":"m\\u0061","object":"list","created":1E3,'
        b'"usage":{"total_tokens":3}}'
    )


def test_B31_joined_pieces_are_the_answer_that_was_cut() -> None:
    found = good(ODD, 2)
    pieces = [opened(found.alone(place, {"total_tokens": 2})) for place in (0, 1, 0)]
    answer = orjson.loads(joined(pieces, {"total_tokens": 6}))
    whole = orjson.loads(ODD)
    first, second = sorted(whole["data"], key=lambda row: row["index"])
    assert answer == {
        **whole,
        "usage": {"total_tokens": 6},
        "data": [first, second, {**first, "index": 2}],
    }


def test_B31_a_stored_answer_is_opened_as_it_came() -> None:
    body = b'\n{"data":[{"index":0,\n"embedding":\t"AACAPw==" }] ,"model":"m"}'
    piece = opened(body, BASE64)
    assert piece.vector == b'"AACAPw=="'
    assert joined([piece, piece], None) == (
        b'{"data":[{"index":0,\n"embedding":\t"AACAPw==" },{"index":1,\n"embedding":\t"AACAPw==" }]'
        b',"model":"m"}'
    )


def test_B33_a_piece_is_in_the_encoding_that_is_wanted() -> None:
    assert opened(made("AACAPw=="), FLOAT).vector == b"[1.0]"
    assert opened(made([1.0]), BASE64).vector == b'"AACAPw=="'
    with pytest.raises(NotAVector):
        opened(made("AA!="), FLOAT)


def test_B31_what_is_no_answer_to_one_input_has_no_piece() -> None:
    opener = Opener()
    for payload in (b"", b"{}", b'{"data":[]}', made([1.0], [2.0]), b'{"embedding":[1]}'):
        assert opener.open(payload, FLOAT) is None


def test_an_opener_remembers_only_so_much() -> None:
    opener = Opener()
    for number in range(5_000):
        piece = opener.open(made([1.0], usage={"total_tokens": number}), FLOAT)
        assert piece is not None
        assert piece.frame.counts == {"total_tokens": number}
    assert len(opener._frames) <= 4_096
    long = made([1.0], note="x" * 10_000)
    assert opener.open(long, FLOAT) is not None
    assert not any(len(before) + len(after) > 2_048 for before, after in opener._frames)


ROW = {"object": "embedding", "index": 0, "embedding": [1.0]}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", NotStored.UNPARSABLE),
        (b"[]", NotStored.UNPARSABLE),
        (b"{}", NotStored.UNPARSABLE),
        (b'{"data":{}}', NotStored.UNPARSABLE),
        (b'{"data":[1,2]}', NotStored.UNPARSABLE),
        (b'{"error":{"message":"x"},"data":[]}', NotStored.ERROR_BODY),
        (made([1.0]), NotStored.ITEM_COUNT),
        (made([1.0], [2.0], [3.0]), NotStored.ITEM_COUNT),
        (orjson.dumps({"data": [ROW, ROW]}), NotStored.ITEM_COUNT),
        (orjson.dumps({"data": [ROW, {**ROW, "index": 2}]}), NotStored.ITEM_COUNT),
        (orjson.dumps({"data": [ROW, {**ROW, "index": None}]}), NotStored.ITEM_COUNT),
        (orjson.dumps({"data": [ROW, {**ROW, "index": True}]}), NotStored.ITEM_COUNT),
        (made([1.0], "AACAPw=="), NotStored.UNPARSABLE),
        (made([1.0], []), NotStored.UNPARSABLE),
        (made([1.0], [None]), NotStored.UNPARSABLE),
        (made([1.0], ["a"]), NotStored.UNPARSABLE),
        (made([1.0], [[2.0]]), NotStored.UNPARSABLE),
        (made("", ""), NotStored.UNPARSABLE),
        (made([1.0], None), NotStored.UNPARSABLE),
        (made([1.0], 0), NotStored.UNPARSABLE),
        (made([1.0], [2.0])[:-1], NotStored.UNPARSABLE),
        (made([1.0], [2.5]).replace(b"2.5", b"2.5.1"), NotStored.UNPARSABLE),
        (made([1.0], [2.5]).replace(b"2.5]", b"2.5"), NotStored.UNPARSABLE),
        (made([1.0], [2.5]).replace(b"2.5", b"1e999"), NotStored.UNPARSABLE),
        (made([1.0], [2.0]).replace(b'"index":1', b'"index":0,"index":1'), NotStored.UNPARSABLE),
        (
            made([1.0], [2.0]).replace(b'"embedding":[2', b'"x\\"embedding":[2'),
            NotStored.UNPARSABLE,
        ),
        (made([1.0], [2.0]).replace(b'{"object":"list"', b'{"data":[]', 1), NotStored.UNPARSABLE),
        (
            made([1.0], [2.0]).replace(b"{", b'{"x":{"embedding":["embedding":9]},', 1),
            NotStored.UNPARSABLE,
        ),
    ],
)
def test_B31_what_is_no_answer_to_the_inputs_is_refused(body: bytes, reason: NotStored) -> None:
    assert cut(body, 2) is reason


def test_B31_a_member_of_that_name_elsewhere_stays_where_it_is() -> None:
    body = (
        b'{"meta":{"embedding":[9.0]},"data":[{"index":0,"embedding":[1.0],"x":{"embedding":"A"}},'
        b'{"index":1,"embedding":[2.0],"x":{"embedding":[8.0,7.0]}}],"embedding":[6.0]}'
    )
    found = good(body, 2)
    assert found.vectors == [b"[1.0]", b"[2.0]"]
    alone = found.alone(1, None)
    assert alone == (
        b'{"meta":{"embedding":[9.0]},"data":[{"index":0,"embedding":[2.0],'
        b'"x":{"embedding":[8.0,7.0]}}],"embedding":[6.0]}'
    )
    assert joined([opened(alone)], None) == alone
