"""One body, many readers: each gets every byte in order, or an error; nobody holds another up."""

import asyncio

import pytest

from proxy.engine.broadcast import READ_AHEAD_BYTES, Broadcast, Piece, Reader
from proxy.errors import CutOff, UpstreamProtocolError
from tests.unit.engine.kit import going

pytestmark = pytest.mark.anyio


def piece(text: bytes) -> Piece:
    return Piece(text, text)


async def rest_of(reader: Reader) -> bytes:
    read = b""
    while (chunk := await reader.read()) is not None:
        read += chunk
    return read


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_B40_a_reader_that_begins_late_gets_every_byte_from_the_first_on() -> None:
    body = Broadcast(max_bytes=100, keeps=True)
    early = body.reader(trimmed=False)
    body.append(piece(b"one "))
    assert await early.read() == b"one "
    body.append(piece(b"two "))
    late = body.reader(trimmed=False)
    body.append(piece(b"three"))
    body.close()

    assert await rest_of(early) == b"two three"
    assert await rest_of(late) == b"one two three"


async def test_B40_readers_that_wait_are_woken_by_the_next_piece_and_by_the_end() -> None:
    body = Broadcast(max_bytes=100, keeps=True)
    readers = [body.reader(trimmed=False) for _ in range(3)]
    reading = [asyncio.get_running_loop().create_task(rest_of(reader)) for reader in readers]
    await turns()

    body.append(piece(b"a"))
    await turns()
    body.close()

    assert await asyncio.gather(*reading) == [b"a"] * 3


async def test_B40_a_reader_that_is_cancelled_takes_nothing_from_the_others() -> None:
    body = Broadcast(max_bytes=100, keeps=True)
    going, staying = body.reader(trimmed=False), body.reader(trimmed=False)
    gone = asyncio.get_running_loop().create_task(going.read())
    stays = asyncio.get_running_loop().create_task(rest_of(staying))
    await turns()

    gone.cancel()
    going.leave()
    await turns()
    body.append(piece(b"x"))
    body.close()

    assert await stays == b"x"


async def test_B24_each_reader_has_the_usage_chunk_or_not() -> None:
    body = Broadcast(max_bytes=100, keeps=True)
    body.append(Piece(b"text", b"text"))
    body.append(Piece(b"usage", b""))
    body.append(Piece(b"done", b"done"))
    body.close()

    assert await rest_of(body.reader(trimmed=False)) == b"textusagedone"
    assert await rest_of(body.reader(trimmed=True)) == b"textdone"


async def test_B21_a_body_that_breaks_off_ends_in_the_error_after_all_that_came() -> None:
    body = Broadcast(max_bytes=100, keeps=True)
    body.append(piece(b"half"))
    body.close(UpstreamProtocolError("broke off"))
    reader = body.reader(trimmed=False)

    assert await reader.read() == b"half"
    with pytest.raises(UpstreamProtocolError):
        await reader.read()


async def test_B43_a_reader_that_falls_too_far_behind_is_cut_off_and_never_skips() -> None:
    body = Broadcast(max_bytes=10, keeps=True)
    slow, fast = body.reader(trimmed=False), body.reader(trimmed=False)
    read = b""
    for number in range(10):
        body.append(piece(b"%04d" % number))
        read += await fast.read() or b""
    body.close()

    assert read == b"".join(b"%04d" % number for number in range(10))
    assert await rest_of(fast) == b""
    with pytest.raises(CutOff):
        await slow.read()


async def test_B43_what_is_held_is_bounded_and_nobody_new_begins_in_the_middle() -> None:
    body = Broadcast(max_bytes=10, keeps=True)
    body.reader(trimmed=False)
    reads = body.reader(trimmed=False)
    assert body.is_whole
    for _ in range(100):
        body.append(piece(b"abcd"))
        await reads.read()
        assert len(body.whole()) <= 10
    assert not body.is_whole


async def test_B43_the_source_waits_for_the_fastest_reader_alone() -> None:
    body = Broadcast(max_bytes=10 * READ_AHEAD_BYTES, keeps=True)
    slow, fast = body.reader(trimmed=False), body.reader(trimmed=False)
    body.append(piece(b"x" * READ_AHEAD_BYTES))
    waiting = asyncio.get_running_loop().create_task(body.room())
    await turns()
    assert not waiting.done()

    await fast.read()
    await waiting

    assert slow.number == 0


async def test_B43_the_source_goes_on_when_the_only_reader_has_left() -> None:
    body = Broadcast(max_bytes=10 * READ_AHEAD_BYTES, keeps=True)
    reader = body.reader(trimmed=False)
    body.append(piece(b"x" * READ_AHEAD_BYTES))
    waiting = asyncio.get_running_loop().create_task(body.room())
    await turns()

    reader.leave()

    await waiting


async def test_B43_a_follower_that_comes_lets_the_source_go_on_where_the_leader_stalls() -> None:
    body = Broadcast(max_bytes=10 * READ_AHEAD_BYTES, keeps=True)
    body.reader(trimmed=False)
    body.append(piece(b"x" * READ_AHEAD_BYTES))
    waiting = asyncio.get_running_loop().create_task(body.room())
    await turns()

    await rest_or_first(body.reader(trimmed=False))

    await waiting


async def rest_or_first(reader: Reader) -> bytes | None:
    return await reader.read()


async def test_a_body_that_nobody_may_join_holds_only_what_is_not_read_yet() -> None:
    body = Broadcast(max_bytes=1000, keeps=False)
    body.append(piece(b"before the reader came"))
    reader = body.reader(trimmed=False)
    assert await reader.read() == b"before the reader came"

    body.append(piece(b"and after"))
    assert await reader.read() == b"and after"

    assert body.whole() == b""
    assert not body.is_whole


async def test_a_reader_far_behind_gets_several_pieces_in_one_read() -> None:
    body = Broadcast(max_bytes=10_000, keeps=True)
    reader = body.reader(trimmed=False)
    for _ in range(100):
        body.append(piece(b"abc"))
    assert await reader.read() == b"abc" * 100


async def test_the_terminal_piece_tells_that_the_answer_is_complete() -> None:
    body = Broadcast(max_bytes=100, keeps=True)
    reader = body.reader(trimmed=False)
    body.append(piece(b"text"))
    await reader.read()
    assert not reader.has_terminal
    body.append(piece(b"[DONE]"), terminal=True)
    assert not reader.has_terminal
    await reader.read()
    assert reader.has_terminal


# ---- who waits for the end ----


async def test_B43_while_somebody_waits_for_the_end_the_source_waits_for_no_reader() -> None:
    body = Broadcast(max_bytes=10 * READ_AHEAD_BYTES, keeps=True)
    body.reader(trimmed=False)
    body.append(piece(b"x" * READ_AHEAD_BYTES))
    waiting = going(body.room())
    await turns()
    assert not waiting.done()
    with body.hurried():
        await waiting
        await body.room()
    waiting = going(body.room())
    await turns()
    assert not waiting.done(), "and for the fastest one again afterwards"
    waiting.cancel()


async def test_B43_what_is_held_is_bounded_while_somebody_waits_for_the_end() -> None:
    body = Broadcast(max_bytes=10, keeps=True)
    slow = body.reader(trimmed=False)
    with body.hurried():
        for _ in range(100):
            body.append(piece(b"abcd"))
            assert len(body.whole()) <= 10
    with pytest.raises(CutOff):
        await slow.read()


async def test_B43_patience_with_readers_ends_once_for_all() -> None:
    body = Broadcast(max_bytes=10 * READ_AHEAD_BYTES, keeps=True)
    body.reader(trimmed=False)
    body.append(piece(b"x" * READ_AHEAD_BYTES))
    await body.room(0.01)
    body.append(piece(b"x" * READ_AHEAD_BYTES))
    await body.room(3600.0)


async def test_B43_beyond_what_is_held_the_source_waits_however_long() -> None:
    body = Broadcast(max_bytes=100, keeps=True)
    reader = body.reader(trimmed=False)
    body.append(piece(b"x" * 101))
    assert not body.is_whole
    waiting = going(body.room(0.001))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await reader.read()
    await waiting


async def test_B43_the_source_waits_for_no_reader_that_is_cut_off_already() -> None:
    body = Broadcast(max_bytes=100, keeps=True)
    cut_off = body.reader(trimmed=False)
    with body.hurried():
        for _ in range(100):
            body.append(piece(b"x" * 10))
    await body.room()
    with pytest.raises(CutOff):
        await cut_off.read()
