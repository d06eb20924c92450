"""Processes that share records hear of each other's changes at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest

from mirror.store.epochs import Epochs, epoch_key
from mirror.store.generations import Generations
from mirror.store.typed import TypedRecords
from tests.books import Book

KEY = ("number", "one")
REPOSITORY = ("a.test", "app")


class Number(msgspec.Struct, frozen=True, array_like=True):
    """A shape."""

    value: int


@pytest.fixture
def shared() -> Iterator[int]:
    """Memory of several processes."""
    fd = Generations.share()
    yield fd
    os.close(fd)


@pytest.fixture
async def pair(shared: int) -> AsyncIterator[tuple[TypedRecords, TypedRecords, Book]]:
    """The records of two processes over one book."""
    book = Book()
    one, other = (TypedRecords(book, generations=Generations(shared)) for _ in range(2))
    yield one, other, book
    await one.close()
    await other.close()


def test_a_change_is_seen_through_every_map(shared: int) -> None:
    """A stamp is current until somebody changes a record of its group, in whichever process."""
    one, other = Generations(shared), Generations(shared)
    before = one.stamp(KEY)
    assert other.is_current(before)

    after = other.changed(before.slot)

    assert not one.is_current(before)
    assert one.is_current(after)
    assert one.stamp(KEY) == after


def test_one_alone_shares_with_nobody() -> None:
    """Without shared memory each has its own."""
    one, other = Generations(), Generations()
    stamp = one.stamp(KEY)
    other.changed(stamp.slot)
    assert one.is_current(stamp)


async def test_what_another_process_writes_counts_at_once(pair: tuple[TypedRecords, TypedRecords, Book]) -> None:
    """Written, written again, and deleted."""
    one, other, _ = pair
    for number in (1, 2):
        await one.put(KEY, Number(number), 60)
        assert await other.get(KEY, Number) == Number(number)
    await other.delete(KEY)
    assert await one.get(KEY, Number) is None
    await one.put(KEY, Number(3), 60)
    assert await other.get(KEY, Number) == Number(3)


async def test_who_writes_keeps_its_copy(pair: tuple[TypedRecords, TypedRecords, Book]) -> None:
    """Nothing is read for what one has written itself."""
    one, _, book = pair
    await one.put(KEY, Number(1), 60)
    book.rows.clear()
    assert await one.get(KEY, Number) == Number(1)


async def test_of_two_who_write_at_once_the_last_counts_for_both(
    pair: tuple[TypedRecords, TypedRecords, Book],
) -> None:
    """Only the disk knows who that was."""
    one, other, book = pair
    await asyncio.gather(one.put(KEY, Number(1), 60), other.put(KEY, Number(2), 60))
    last = msgspec.msgpack.decode(book.rows[KEY], type=Number)
    assert [await one.get(KEY, Number), await other.get(KEY, Number)] == [last, last]


async def test_a_copy_read_before_a_change_is_outdated_after_it(
    pair: tuple[TypedRecords, TypedRecords, Book],
) -> None:
    """Whatever was read while another process was writing is not kept beyond that."""
    one, other, book = pair
    await one.put(KEY, Number(1), 60)
    book.hold()
    reading = asyncio.create_task(other.get(KEY, Number))
    await book.reading.wait()
    await one.put(KEY, Number(2), 60)
    book.release()
    await reading

    assert await other.get(KEY, Number) == Number(2)


async def test_a_disk_that_writes_nothing_takes_no_copy_away(
    pair: tuple[TypedRecords, TypedRecords, Book],
) -> None:
    """While it is full or read-only, what is in memory is all that there is."""
    one, _, book = pair
    book.lost = True
    await one.put(KEY, Number(1), 60)
    await one.put(("number", "other"), Number(2), 60)
    assert await one.get(KEY, Number) == Number(1)


async def test_an_epoch_that_another_process_ends_has_ended(shared: int) -> None:
    """What was noted in it counts nowhere any more; the next number is the same for all once something is noted."""
    book = Book()
    one, other = (Epochs(book, useful_for=60, generations=Generations(shared)) for _ in range(2))
    number = await one.number(REPOSITORY)
    assert await one.stands(REPOSITORY, number)
    assert await other.number(REPOSITORY) == number

    await one.end(REPOSITORY)

    assert await other.number(REPOSITORY) != number
    following = await one.number(REPOSITORY)
    assert await one.stands(REPOSITORY, following)
    assert await other.number(REPOSITORY) == following


async def test_a_question_outlives_changes_of_other_records(shared: int) -> None:
    """Its epoch is not written down yet, and has not ended because something else changed."""
    generations = Generations(shared)
    epochs = Epochs(Book(), useful_for=60, generations=generations)
    number = await epochs.number(REPOSITORY)
    generations.changed(generations.stamp(("epoch", *REPOSITORY)).slot)
    assert await epochs.number(REPOSITORY) == number
    assert await epochs.stands(REPOSITORY, number)


def test_who_watches_records_hears_of_changes_in_every_process(shared: int) -> None:
    """Of any of them; and in its own process as soon as a change begins, whenever the disk has it."""
    ours, theirs = Generations(shared), Generations(shared)
    keys = [KEY, ("number", "two"), ("number", "three")]
    for key in keys:
        watch = ours.watch(keys)
        assert watch.holds()
        theirs.changed(theirs.stamp(key).slot)
        assert not watch.holds()
        watch = ours.watch(keys)
        ours.begins(key)
        assert not watch.holds()
    watch = ours.watch(keys)
    ours.changed((ours.stamp(KEY).slot + 1) % 4096)
    assert watch.holds()


@pytest.mark.parametrize("lost", [False, True], ids=["written", "lost"])
async def test_who_watches_a_record_hears_of_a_change_before_the_disk(shared: int, lost: bool) -> None:
    """What is asked for the record finds the change at once: so does who has made something of it."""
    book = Book()
    book.lost = lost
    generations = Generations(shared)
    records = TypedRecords(book, generations=generations)
    for change in (records.put(KEY, Number(1), 60), records.delete(KEY)):
        watch = generations.watch([KEY])
        changing = asyncio.create_task(change)
        await asyncio.sleep(0)
        assert not watch.holds()
        await changing
        assert not watch.holds()
    await records.close()


async def test_who_watches_an_epoch_hears_of_its_end(shared: int) -> None:
    """Written down or not."""
    generations = Generations(shared)
    epochs = Epochs(Book(), useful_for=60, generations=generations)
    for written in (False, True):
        number = await epochs.number(REPOSITORY)
        if written:
            assert await epochs.stands(REPOSITORY, number)
        watch = generations.watch([epoch_key(REPOSITORY)])
        await epochs.end(REPOSITORY)
        assert not watch.holds()
