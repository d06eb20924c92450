"""Parsers of outside bytes keep their promises for every kept input, for what becomes of it, and however long it is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.corpus import FOLDER, LONG, damaged, endless, entries
from tests.fuzz.parsers import CHECKS

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""A tenth of it of other ones for each parser than the same few as ever: `make fuzz`."""
CPU_SECONDS = 2.0
"""For LONG characters, on any machine: parsers take a hundredth of it, or, where their time is not linear, minutes."""


def some(usual: int, share: int) -> settings:
    """`usual` examples, the same in every run; EXAMPLES divided by `share` where there are any."""
    return settings(
        max_examples=max(1, EXAMPLES // share) if EXAMPLES else usual,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def test_every_parser_has_a_corpus_and_every_corpus_a_parser() -> None:
    """A file that nothing reads would look like a promise."""
    assert {Path(file).stem for file in FOLDER.iterdir()} == CHECKS.keys()
    assert [parser for parser in CHECKS if len(set(entries(parser))) < len(entries(parser))] == []


@pytest.mark.parametrize("parser", CHECKS)
def test_kept_inputs_break_no_promise(parser: str) -> None:
    """Also not those that once did."""
    for entry in entries(parser):
        CHECKS[parser](entry)


@pytest.mark.parametrize("parser", CHECKS)
@pytest.mark.timeout(60 + EXAMPLES // 50)
def test_damaged_inputs_break_no_promise(parser: str) -> None:
    """Cut, repeated, spliced, flipped: only documented errors, and only values of the grammar."""

    @some(200, share=10)
    @given(damaged(parser))
    def check(text: str) -> None:
        CHECKS[parser](text)

    check()


@pytest.mark.parametrize("parser", CHECKS)
@pytest.mark.timeout(60 + EXAMPLES // 50)
def test_any_text_breaks_no_promise(parser: str) -> None:
    """Also none that has nothing to do with what is expected."""

    @some(50, share=40)
    @given(st.text(max_size=200))
    def check(text: str) -> None:
        CHECKS[parser](text)

    check()


@pytest.mark.parametrize("parser", CHECKS)
@pytest.mark.timeout(120 + EXAMPLES // 10)
def test_time_is_linear_in_the_length(parser: str) -> None:
    """No input stops the event loop: as long as a header can be, it is read in a blink."""

    # An example that takes long would take longer still to be made smaller.
    @settings(some(25, share=400), phases=[Phase.generate])
    @given(endless(parser))
    def check(text: str) -> None:
        assert len(text) <= LONG
        began = time.process_time()
        CHECKS[parser](text)
        assert time.process_time() - began < CPU_SECONDS

    check()
