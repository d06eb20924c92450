"""The demonstration's tables: what came from where and how fast, and what that cost the upstream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from examples.demo.client import Fetched
from examples.demo.story import Act

_COLOURS = {"hit": "green", "joined": "cyan", "miss": "yellow"}


def show(console: Console, acts: Sequence[Act], amplification: float) -> None:
    """Prints both tables and what they come to."""
    console.print(_origins(acts))
    console.print(_savings(acts))
    clients, upstream = sum(act.bytes for act in acts), sum(act.asked.bytes for act in acts)
    console.print(
        f"Clients got {decimal(clients)}, the upstream sent {decimal(upstream)}: "
        f"[bold]{_share(clients, upstream)} of the bytes never left it[/bold]."
    )
    console.print(f"Origin amplification (upstream blob bytes per byte newly held): [bold]{amplification:.3f}[/bold]")


def _origins(acts: Sequence[Act]) -> Table:
    table = _table("What came from where")
    for name in ("", "what"):
        table.add_column(name, no_wrap=True)
    table.add_column("X-Cache")
    for name in ("size", "time", "speed"):
        table.add_column(name, justify="right", no_wrap=True)
    for act in acts:
        # Of many clients the one that waited longest: none did worse.
        slowest = max(act.pulls, key=lambda pull: max(thing.seconds for thing in pull))
        for number, thing in enumerate(slowest):
            sources = [pull[number].source for pull in act.pulls]
            table.add_row(act.name if number == 0 else "", thing.what, _sources(sources), *_figures(thing))
        table.add_section()
    return table


def _savings(acts: Sequence[Act]) -> Table:
    table = _table("What it saved")
    table.add_column("", no_wrap=True)
    for name in ("time", "requests", "to upstream", "bytes", "from upstream", "saved"):
        table.add_column(name, justify="right")
    for act in acts:
        table.add_row(
            act.name,
            _time(act.seconds),
            str(act.requests),
            str(act.asked.requests),
            decimal(act.bytes),
            decimal(act.asked.bytes),
            _share(act.bytes, act.asked.bytes),
        )
    return table


def _table(title: str) -> Table:
    """Narrow enough for 80 columns."""
    return Table(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def _sources(sources: Sequence[str]) -> str:
    """`hit`, or how many of each."""
    counted = Counter(sources)
    texts = []
    for source, count in sorted(counted.items(), key=lambda pair: pair[1]):
        colour = _COLOURS.get(source, "red")
        texts.append(f"[{colour}]{source if len(sources) == 1 else f'{count} {source}'}[/{colour}]")
    return ", ".join(texts)


def _figures(thing: Fetched) -> tuple[str, str, str]:
    # The speed of a few bytes says nothing.
    speed = f"{decimal(int(thing.size / thing.seconds), precision=0)}/s" if thing.size > 100_000 else ""
    return decimal(thing.size), _time(thing.seconds), speed


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _share(clients: int, upstream: int) -> str:
    """Which part of what clients got did not come from the upstream."""
    return f"{100 * (1 - upstream / clients):.0f} %"
