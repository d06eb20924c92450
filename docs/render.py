"""Fills the generated parts of the documentation: `python -m docs.render`.

A part stands between `<!-- begin WHAT -->` and `<!-- end -->`; WHAT is `settings`, the table of configuration keys,
`file PATH`, a file of the repository that tests use as well, `chart PATH`, a table of a chart's values, `soak PATH`,
what `make soak JSON=PATH` found, or `faults table` and `faults figures`, what `make faults-all` saw last;
`bench QUESTION`, `bench targets` and `bench about`, what `make bench ARGS="--json docs/performance.json"` has measured.
The plots beside them are drawn too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench import document
from bench.soak import verdict
from docs.chart_values import values_table
from docs.fault_table import fault_figures, fault_table
from mirror.config import settings_table

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "docs/clients.md", "docs/reliability.md", "docs/performance.md", "helm/mirror/README.md")

_PART = re.compile(r"(<!-- begin (?P<what>[^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FAULTS = {"faults table": fault_table, "faults figures": fault_figures}
_LANGUAGES = {".json": "json", ".toml": "toml", ".conf": "toml", ".yaml": "yaml"}


def render(text: str) -> str:
    """`text` with every generated part made anew."""
    return _PART.sub(lambda part: f"{part[1]}{_made(part['what'])}{part[3]}", text)


def _made(what: str) -> str:
    kind, _, argument = what.partition(" ")
    if kind == "settings":
        return f"{settings_table().strip()}\n"
    if kind == "file":
        path = ROOT / argument
        return f"```{_LANGUAGES.get(path.suffix, '')}\n{path.read_text().strip()}\n```\n"
    if kind == "chart":
        return values_table(ROOT / argument)
    if kind == "bench":
        return document.part(argument)
    if kind == "soak":
        return verdict.table(json.loads((ROOT / argument).read_text()))
    if what in _FAULTS:
        return f"{_FAULTS[what]()}\n"
    raise ValueError(f"no generated part is called {what!r}")


def main() -> None:
    """Rewrites the documents in place, and draws the plots."""
    for name in DOCUMENTS:
        path = ROOT / name
        path.write_text(render(path.read_text()))
    document.PLOTS.mkdir(exist_ok=True)
    for path, picture in document.pictures().items():
        path.write_text(picture)


if __name__ == "__main__":
    main()
