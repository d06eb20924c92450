"""Sizes, rates, durations and shares are read as people write them, and written so that they can be read again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.config import Amount, units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GiB", 20 * 2**30),
        ("500MB", 500_000_000),
        ("1.5 TiB", 3 * 2**39),
        ("8kb", 8000),
        ("512B", 512),
        ("1048576", 1048576),
        (1048576, 1048576),
        (0, 0),
        ("0", 0),
    ],
)
def test_sizes_are_bytes(text: object, size: int) -> None:
    """A size may be written with a binary or decimal unit, or as a whole number of bytes."""
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "20 G", "20Gb/s", "1.5", 1.5, -1, "-1", True, None, "1e3", "9EB", "٣MB", 2**63]
)
def test_what_is_no_size_is_refused(text: object) -> None:
    """Half bytes, unknown units, negative and absurd sizes are mistakes, not guesses."""
    with pytest.raises(ValueError, match="a size such as"):
        units.parse_size(text)


@given(st.integers(0, 2**63 - 1))
def test_a_shown_size_reads_as_the_same_size(size: int) -> None:
    """Showing a size loses no byte."""
    assert units.parse_size(units.format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "rate"), [("8KiB/s", 8192), ("10 MB/s", 10_000_000), ("100B/s", 100), (0, 0), ("0", 0)]
)
def test_rates_are_bytes_a_second(text: object, rate: int) -> None:
    """A rate is a size with /s; none at all needs no unit."""
    assert units.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["8KiB", "8192", 8192, "8192/s", "/s", "", None, False, "8KiB/m"])
def test_a_rate_needs_its_unit(text: object) -> None:
    """A rate without its unit is a mistake: bits and bytes, seconds and minutes look alike."""
    with pytest.raises(ValueError, match="a rate such as"):
        units.parse_rate(text)


@given(st.integers(0, 2**63 - 1))
def test_a_shown_rate_reads_as_the_same_rate(rate: int) -> None:
    """Showing a rate loses no byte a second."""
    assert units.parse_rate(units.format_rate(rate)) == rate


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("1h", 3600),
        ("7d", 604800),
        ("1h30m", 5400),
        ("1d2h3m4s5ms", 93784.005),
        ("1.5h", 5400),
        ("0", 0),
        (0, 0),
        ("0s", 0),
    ],
)
def test_durations_are_seconds(text: object, seconds: float) -> None:
    """A duration has its unit; units can be combined, the larger first; zero needs none."""
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "5 m", "30m1h", "1h1h", "-5s", "forever", None, True, "1e3s", "99999d", ["5s"]]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    """Unknown units, negative and absurd durations, and units out of order are mistakes."""
    with pytest.raises(ValueError, match="a duration such as"):
        units.parse_duration(text)


@pytest.mark.parametrize("number", [30, "30", 0.5, "0.5", -1])
def test_a_bare_number_is_told_to_lack_its_unit(number: object) -> None:
    """Seconds or milliseconds are not guessed; the message says what is missing."""
    with pytest.raises(ValueError, match="a bare number does not say its unit"):
        units.parse_duration(number)


@given(st.integers(0, 3650 * 86400 * 1000))
def test_a_shown_duration_reads_as_the_same_duration(milliseconds: int) -> None:
    """Showing a duration loses no millisecond."""
    assert units.parse_duration(units.format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize(("text", "fraction"), [("90%", 0.9), ("0.9", 0.9), (0.9, 0.9), (1, 1.0), ("12.5 %", 0.125)])
def test_shares_are_fractions(text: object, fraction: float) -> None:
    """A share is a percentage or a number from 0 to 1."""
    assert units.parse_fraction(text) == fraction


@pytest.mark.parametrize("text", [90, "90", "101%", "-5%", "%", "", None, True])
def test_what_is_no_share_is_refused(text: object) -> None:
    """A number above 1 without its percent sign is a mistake."""
    with pytest.raises(ValueError, match="a share such as"):
        units.parse_fraction(text)


@given(st.integers(0, 10_000))
def test_a_shown_share_reads_as_the_same_share(hundredths: int) -> None:
    """Showing a share loses no hundredth of a percent."""
    fraction = hundredths / 10_000
    assert units.parse_fraction(units.format_fraction(fraction)) == fraction


def test_an_amount_is_a_size_or_a_share_of_the_whole() -> None:
    """The same key can be bytes, or a percentage of what the file system has."""
    assert units.parse_amount("10GiB").of(100) == 10 * 2**30
    assert units.parse_amount("5%").of(1000) == 50
    assert units.parse_amount(Amount(size=7)).of(0) == 7
    assert [str(units.parse_amount(text)) for text in ("10GiB", "5%", 0)] == ["10GiB", "5%", "0B"]


@pytest.mark.parametrize("text", ["lots", "0.5", "200%", None])
def test_what_is_no_amount_is_refused(text: object) -> None:
    """A fraction without its percent sign could be half a byte."""
    with pytest.raises(ValueError, match="a size such as 10GiB or a percentage"):
        units.parse_amount(text)
