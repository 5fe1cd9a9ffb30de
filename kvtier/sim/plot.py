"""Plot: a replay's Result -> a picture of hit rate against capacity, one line per policy, the optimum as ceiling."""

from __future__ import annotations

from pathlib import Path

from kvtier.errors import InputError
from kvtier.sim.replay import OPTIMAL, UNBOUNDED, Result

MISSING = "--plot needs matplotlib: pip install 'kvtier[plot]'"


def check_available() -> None:
    """Raise InputError when plots cannot be made, before a long replay rather than after it."""
    try:
        import matplotlib as mpl  # noqa: F401, PLC0415 an extra
    except ImportError as error:
        raise InputError(MISSING) from error


def lines_of(result: Result) -> dict[str, list[tuple[int, float]]]:
    """Points (capacity in blocks, block hit rate) of each line, by its name, smallest first."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in result.rows:
        if row.name != UNBOUNDED:
            kind = f"{row.name}, host + disk" if row.n_disk and row.name != OPTIMAL else row.name
            points = lines.setdefault(kind, [])
            if (point := (row.n_host + row.n_disk, row.tally.block_hit_rate)) not in points:
                points.append(point)
    return {name: sorted(points) for name, points in lines.items()}


def plot(result: Result, name: str, path: Path) -> None:
    """Write the picture to `path`; its suffix says the format. Raises InputError."""
    check_available()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 an extra
    from matplotlib.figure import Figure  # noqa: PLC0415 no pyplot: it holds global state

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, points in lines_of(result).items():
        (line,) = axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=label)
        if label == OPTIMAL:
            line.set(color="black", linestyle="--")
    axes.axhline(result.unbounded.block_hit_rate, color="gray", linestyle=":", label=UNBOUNDED)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"capacity in blocks of {result.tokens_per_chunk} tokens")
    axes.set_ylabel("block hit rate")
    axes.set_title(name)
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the plot cannot be written: {error}") from error
