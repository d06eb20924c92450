"""Epochs: numbers that never come back."""

from __future__ import annotations

import os

from mirror.store.epochs import Epochs
from mirror.store.generations import Generations
from tests.books import Book

ONE, OTHER = ("a.test", "app"), ("a.test", "other")


async def test_an_epoch_lasts_until_it_is_ended() -> None:
    """For one repository; written down once something is noted in it, it is the same for the next process."""
    book = Book()
    epochs = Epochs(book, useful_for=60)
    number, other = await epochs.number(ONE), await epochs.number(OTHER)
    assert await epochs.stands(ONE, number)
    assert await epochs.number(ONE) == number != other
    assert await Epochs(book, useful_for=60).number(ONE) == number

    await epochs.end(ONE)

    assert await epochs.number(ONE) != number
    assert await epochs.number(OTHER) == other
    assert not await epochs.stands(ONE, number)
    assert await Epochs(book, useful_for=60).number(ONE) != number


async def test_one_in_which_nothing_was_noted_leaves_nothing() -> None:
    """Questions alone write no record."""
    book = Book()
    await Epochs(book, useful_for=60).number(ONE)
    assert book.rows == {}


async def test_one_that_has_ended_is_not_written() -> None:
    """Whoever comes late with its number brings nothing back."""
    book = Book()
    epochs = Epochs(book, useful_for=60)
    number = await epochs.number(ONE)
    await epochs.end(ONE)
    await epochs.write(ONE, number)
    assert book.rows == {}


async def test_a_second_refusal_hides_no_first_one_from_another_process() -> None:
    """Which has made up a number of its own and noted nothing yet: it may have questions on their way."""
    book, fd = Book(), Generations.share()
    ours, theirs = (Epochs(book, useful_for=60, generations=Generations(os.dup(fd))) for _ in range(2))
    number = await theirs.number(ONE)

    await ours.end(ONE)
    await ours.end(ONE)

    assert not await theirs.stands(ONE, number)
    os.close(fd)
