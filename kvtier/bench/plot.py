"""Plot: results -> a picture, a panel for each unit, in it each figure and what it is held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvtier.bench.base import Result
from kvtier.errors import InputError

MISSING = "--plot needs matplotlib: pip install 'kvtier[plot]'"
_BAR_INCHES = 0.22


def check_available() -> None:
    """Raise InputError when plots cannot be made, before a long measurement rather than after it."""
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise InputError(MISSING) from error


def bars_of(results: Sequence[Result]) -> dict[str, list[tuple[str, float]]]:
    """Bars (label, value) of each unit's panel, in the order of the results; a figure first, then its peers."""
    panels: dict[str, list[tuple[str, float]]] = {}
    for result in results:
        bars = panels.setdefault(result.unit, [])
        bars.append((result.name, result.value))
        bars.extend((f"{result.name}: {peer}", value) for peer, value in result.vs.items())
    return panels


def plot(results: Sequence[Result], title: str, path: Path) -> None:
    """Write the picture to `path`; its suffix says the format. Raises InputError."""
    check_available()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - no pyplot: it holds global state

    panels = bars_of(results)
    heights = [len(bars) for bars in panels.values()]
    figure = Figure(figsize=(10, 1.0 * len(heights) + _BAR_INCHES * sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    names = {result.name for result in results}
    for axes, (unit, bars) in zip(all_axes, panels.items(), strict=True):
        rows = range(len(bars))
        colors = ["tab:blue" if label in names else "lightgray" for label, _ in bars]
        axes.barh(rows, [value for _, value in bars], color=colors)
        axes.set_yticks(rows, [label.rpartition(": ")[2] for label, _ in bars], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
    figure.suptitle(title)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the plot cannot be written: {error}") from error
