"""What a generator draws, as a picture."""

from pathlib import Path

import matplotlib.axes
import matplotlib.figure
import numpy as np

SIDE = 8  # images in a row, and rows


def show(ax: matplotlib.axes.Axes, rows: np.ndarray, held_out: np.ndarray | None = None) -> None:
    """Draw points on a plane, those held out in grey beneath, or the first 64 rows as images."""
    ax.set(aspect="equal", xticks=[], yticks=[])
    if rows.shape[1] == 2:
        for points, colour in ((held_out, "0.75"), (rows, "C0")):
            if points is not None:
                ax.scatter(*points.T, s=3, color=colour)
        edge = max(1.3, 1.05 * np.abs(rows).max())
        ax.set(xlim=(-edge, edge), ylim=(-edge, edge))
    else:
        width = round(rows.shape[1] ** 0.5)
        images = rows[: SIDE * SIDE].reshape(-1, width, width)
        framed = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=1.0)
        width += 2
        tiles = framed.reshape(SIDE, SIDE, width, width).swapaxes(1, 2).reshape(SIDE * width, -1)
        ax.imshow(tiles, cmap="gray", vmin=-1, vmax=1)


def draw(path: Path, samples: np.ndarray, held_out: np.ndarray) -> None:
    """Write a PNG of samples beside the held-out rows."""
    figure = matplotlib.figure.Figure(figsize=(8, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    show(left, samples, held_out)
    left.set_title("generated")
    show(right, held_out)
    right.set_title("held out")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"new-{path.name}")
    figure.savefig(new, dpi=110)
    new.replace(path)
