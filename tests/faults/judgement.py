"""Holds what came of a row against its rule."""

from __future__ import annotations

from tests.faults.expectations import most_bytes, most_requests, rule_of
from tests.faults.scene import Story


def judge(story: Story) -> list[str]:
    """What is wrong with it; empty where nothing is."""
    row, rule = story.row, rule_of(story.row)
    found = list(story.problems)
    if unexpected := story.words - rule.words:
        found.append(f"clients heard {sorted(unexpected)}, not {sorted(rule.words)} ({rule.because})")
    if story.requests > (most := most_requests(row)):
        found.append(f"the upstream was asked {story.requests} times, over {most}")
    if story.sent > (most := most_bytes(row)):
        found.append(f"the upstream sent {story.sent} bytes, over {most}")
    return found
