"""Records with shapes, and the memory copy in front of them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from mirror.store.generations import Generations
from mirror.store.typed import TypedRecords
from tests.books import Book

KEY = ("number", "one")


class Number(msgspec.Struct, frozen=True, array_like=True):
    """A shape."""

    value: int


class Name(msgspec.Struct, frozen=True, array_like=True):
    """Another one."""

    value: str


@pytest.fixture
async def book() -> Book:
    """What stands below."""
    return Book()


@pytest.fixture
async def records(book: Book) -> AsyncIterator[TypedRecords]:
    """The records under test."""
    records = TypedRecords(book)
    yield records
    await records.close()


async def test_a_record_is_found_in_memory_and_by_another_process(records: TypedRecords, book: Book) -> None:
    """What was put is there, without a read; and for whoever reads the same book."""
    await records.put(KEY, Number(7), 60)
    book.hold()
    assert await records.get(KEY, Number) == Number(7)
    book.release()

    other = TypedRecords(book)
    assert await other.get(KEY, Number) == Number(7)
    assert book.useful_for[KEY] == 60
    await other.close()


async def test_what_was_read_once_is_in_memory(records: TypedRecords, book: Book) -> None:
    """The second get reads nothing."""
    book.rows[KEY] = msgspec.msgpack.encode(Number(7))
    assert await records.get(KEY, Number) == Number(7)
    book.rows.clear()

    assert await records.get(KEY, Number) == Number(7)


@pytest.mark.parametrize("value", [b"", b"\xff\xff", msgspec.msgpack.encode(["text"]), msgspec.msgpack.encode({})])
async def test_what_does_not_fit_is_not_there(records: TypedRecords, book: Book, value: bytes) -> None:
    """Damage, and records of another shape."""
    book.rows[KEY] = value

    assert await records.get(KEY, Number) is None


async def test_another_shape_under_the_same_key_is_not_there(records: TypedRecords) -> None:
    """Neither in memory nor below."""
    await records.put(KEY, Name("seven"), 60)

    assert await records.get(KEY, Number) is None


async def test_what_is_written_during_a_read_is_its_answer(records: TypedRecords, book: Book) -> None:
    """Whoever looked before it was there acts on it all the same: a herd asks an upstream for an absent thing once."""
    book.hold()
    reading = asyncio.create_task(records.get(KEY, Number))
    await book.reading.wait()
    await records.put(KEY, Number(7), 60)
    book.release()

    assert await reading == Number(7)


async def test_a_read_under_way_hides_no_later_write(records: TypedRecords, book: Book) -> None:
    """What was written meanwhile is its answer, and that of whoever asks next; not what it has read."""
    book.rows[KEY] = msgspec.msgpack.encode(Number(1))
    book.hold()
    old = asyncio.create_task(records.get(KEY, Number))
    await book.reading.wait()
    await records.put(KEY, Number(2), 60)
    book.release()

    assert await old == Number(2)
    assert await records.get(KEY, Number) == Number(2)


async def test_a_read_under_way_brings_nothing_back(records: TypedRecords, book: Book) -> None:
    """What was deleted meanwhile is deleted, for the read under way as well."""
    book.rows[KEY] = msgspec.msgpack.encode(Number(1))
    book.hold()
    old = asyncio.create_task(records.get(KEY, Number))
    await book.reading.wait()
    await records.delete(KEY)
    book.release()

    assert await old is None
    assert await records.get(KEY, Number) is None


async def test_a_disk_that_does_not_delete_brings_nothing_back(records: TypedRecords, book: Book) -> None:
    """A record that was deleted is gone for this process even where the disk still has it."""
    await records.put(KEY, Number(1), 60)
    book.lost = True

    await records.delete(KEY)

    assert KEY in book.rows
    assert await records.get(KEY, Number) is None
    book.lost = False
    await records.put(KEY, Number(2), 60)
    assert await records.get(KEY, Number) == Number(2)


async def test_a_copy_ends_with_its_record(records: TypedRecords, book: Book) -> None:
    """What the disk would not give any more is not given from memory, whichever process wrote it, and when."""
    book.rows[KEY] = msgspec.msgpack.encode(Number(7))
    book.ends[KEY] = time.time() + 3600
    assert await records.get(KEY, Number) == Number(7)
    await records.put(("number", "two"), Number(2), 3600)
    late = TypedRecords(book)
    book.ends[KEY] = time.time()
    assert await late.get(KEY, Number) == Number(7)  # as the disk still had it
    book.rows.clear()

    assert await records.get(KEY, Number) == Number(7)
    assert await records.get(("number", "two"), Number) == Number(2)
    assert await late.get(KEY, Number) is None
    await late.close()


async def test_that_there_is_no_record_is_in_memory_until_there_is_one(records: TypedRecords, book: Book) -> None:
    """The disk is asked once; what is put later counts at once."""
    assert await records.get(KEY, Number) is None
    book.rows[KEY] = msgspec.msgpack.encode(Number(7))  # behind its back
    assert await records.get(KEY, Number) is None

    await records.put(KEY, Number(8), 60)

    assert await records.get(KEY, Number) == Number(8)


async def test_that_there_is_no_record_is_believed_until_another_process_writes_one(book: Book) -> None:
    """By the generations that both share."""
    fd = Generations.share()
    ours, theirs = (TypedRecords(book, generations=Generations(os.dup(fd))) for _ in range(2))
    assert await ours.get(KEY, Number) is None

    await theirs.put(KEY, Number(7), 60)

    assert await ours.get(KEY, Number) == Number(7)
    await ours.close()
    await theirs.close()
    os.close(fd)


async def test_a_disk_that_does_not_answer_has_not_said_that_there_is_none(records: TypedRecords, book: Book) -> None:
    """It is asked again."""
    book.mute = True
    book.rows[KEY] = msgspec.msgpack.encode(Number(7))
    assert await records.get(KEY, Number) is None

    book.mute = False

    assert await records.get(KEY, Number) == Number(7)
