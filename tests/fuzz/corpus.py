"""The kept inputs of each parser, and hypothesis strategies that damage them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from hypothesis import strategies as st

FOLDER = Path(__file__).parent / "corpus"
LONG = 64 << 10
"""Characters; no header that reaches a parser is longer."""

Edit = tuple[str, int, int, str]

_EXTRAS = (
    "", " ", "\t", "\r\n", "\x00", "\x7f", "\x85", "\xa0", "\u2028", "é", "\uff11", "\ud800", "\udcff", '"', "\\", "'",
    ",", ";", "=", ":", "/", "//", "..", "%", "%2f", "%00", "%zz", "?", "#", "@", "*", "-", "-1", "0", "00", "1e9",
    "9" * 30, "NaN", "null", "{", "}", "[", "]", "[" * 2000,
    "<", ">", "A", "_", "a" * 300, "http://", "xn--a", "[::1]", "ÿ",
)  # fmt: skip


@cache
def entries(parser: str) -> tuple[str, ...]:
    """Its corpus, in order."""
    found = yaml.safe_load((FOLDER / f"{parser}.yaml").read_text())
    assert all(isinstance(entry, str) for entry in found), f"{parser}.yaml holds something that is no text"
    return tuple(found)


def damaged(parser: str) -> st.SearchStrategy[str]:
    """Entries with up to four edits: cut, repeated, spliced with others, letters changed, odd things put in."""
    kept = st.sampled_from(entries(parser))
    edits = st.tuples(
        st.sampled_from("cutdsxkf"), st.integers(0, 10**4), st.integers(0, 10**4), st.sampled_from(_EXTRAS) | kept
    )
    return st.builds(_edited, kept, st.lists(edits, max_size=4))


def endless(parser: str) -> st.SearchStrategy[str]:
    """LONG characters: a piece of an entry, or something odd, over and over, with an entry before and one behind."""
    kept = st.sampled_from(entries(parser))
    piece = st.one_of(st.sampled_from(_EXTRAS), st.builds(_slice, kept, st.integers(0, 10**4), st.integers(0, 10**4)))
    return st.builds(
        lambda before, unit, behind: before + unit * ((LONG - len(before) - len(behind)) // len(unit)) + behind,
        kept | st.just(""),
        piece.filter(bool),
        kept | st.just(""),
    )


def _edited(text: str, edits: list[Edit]) -> str:
    for how, one, other, extra in edits:
        start, end = sorted((one * len(text) // 10**4, other * len(text) // 10**4))
        before, piece, after = text[:start], text[start:end], text[end:]
        text = {
            "c": piece,  # cut off at both ends
            "u": before + after,  # cut out
            "t": before,  # truncate
            "d": before + piece + piece + after,  # duplicate
            "s": before + extra + after,  # splice
            "x": before + piece + extra + after,  # put in
            "k": before + piece.swapcase() + after,
            "f": before + "".join(chr(ord(letter) ^ 1 << one % 8) for letter in piece[:3]) + piece[3:] + after,  # flip
        }[how]
    return text[:LONG]


def _slice(text: str, one: int, other: int) -> str:
    start, end = sorted((one * len(text) // 10**4, other * len(text) // 10**4))
    return text[start : end + 1]
