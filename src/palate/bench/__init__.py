"""What we measure: one file a benchmark, and the simulated people they ask."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

BENCHMARKS: Mapping[str, Callable[..., Any]] = {
    # Imported when it is run: the command line lists the names without loading what they need.
    name: lambda _name=name, **options: import_module(f"palate.bench.{_name}").run(**options)
    for name in (
        "facets",
        "jester",
        "hh",
        "drift",
        "scale",
        "growth",
        "encoder",
        "finetune",
        "satisfaction",
        "following",
        "policy",
        "alignment",
        "training",
        "serving",
    )
}
"""Benchmarks by name; each takes `quick`, `seed`, `data` and `progress`, and returns a `report.Result`."""
