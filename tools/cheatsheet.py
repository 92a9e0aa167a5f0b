"""The pictures of the cheat sheet, one for each switch: `python -m tools.cheatsheet`.

The package makes every curve. A picture has its numbers in itself, as JSON in the description of
the SVG file, so that a test can compare them with what the package makes today.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.figure
import numpy as np
import optax

import optax_rmsprop
from tools.environment import replacing

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "pictures"
Curves = dict[str, list[float]]
STYLE = {
    "svg.hashsalt": "cheatsheet",  # The same numbers give the same file.
    "svg.fonttype": "none",  # Text is text: it can be found and read aloud.
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.prop_cycle": mpl.cycler(color=["#0b62c4", "#c2410c", "#15803d"], ls=["-", "--", ":"]),
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2,
    "legend.frameon": False,
}


def run(tx: optax.GradientTransformation, gradients: Any, start: Any) -> tuple[Any, Any]:
    """The length of every step downhill, and the parameters after each; a row is a step."""

    def step(carry: Any, g: jax.Array) -> Any:
        p, state = carry
        updates, state = tx.update(g, state, p)
        return (p + updates, state), (-updates, p + updates)

    return jax.lax.scan(step, (start, tx.init(start)), gradients)[1]


def steps(tx: optax.GradientTransformation, gradients: Any) -> Any:
    """The length of every step downhill."""
    gradients = jnp.asarray(gradients)
    return run(tx, gradients, jnp.zeros(gradients.shape[1:]))[0]


def eps() -> Curves:
    """Gradients of one size, for so long that ν is their square: how long a step becomes."""
    sizes = np.geomspace(1e-5, 10.0, 61)
    settled = np.broadcast_to(sizes, (200, len(sizes)))
    make = optax_rmsprop.scale_by_rms
    return listed(
        {
            "size of the gradients": sizes,
            "under the root, √(ν+ε)": -steps(make(0.9, 1e-3), settled)[-1],
            "beside the root, √ν+ε": -steps(make(0.9, 1e-3, eps_in_sqrt=False), settled)[-1],
        }
    )


def start() -> Curves:
    """The first steps on gradients of 0.1."""
    gradients = np.full(40, 0.1)
    make = optax_rmsprop.scale_by_rms
    return listed(
        {
            "step": np.arange(1, 41),
            "ν starts at 0": -steps(make(0.9), gradients),
            "ν starts at 1": -steps(make(0.9, initial_scale=1.0), gradients),
        }
    )


def rate() -> Curves:
    """The rate falls from 1 to 0.1 at step 41, with μ = 0.9 and gradients of 1."""
    scale = optax_rmsprop.scale_by_rms(0.9, initial_scale=1.0)
    rate = optax_rmsprop.scale_by_learning_rate(lambda count: jnp.where(count < 40, 1.0, 0.1))
    buffer = optax_rmsprop.trace(0.9)
    gradients = np.ones(80)
    return listed(
        {
            "step": np.arange(1, 81),
            "learning rate in the buffer": steps(
                optax_rmsprop.chain(scale, rate, buffer), gradients
            ),
            "learning rate after it": steps(optax_rmsprop.chain(scale, buffer, rate), gradients),
        }
    )


def centering() -> Curves:
    """Gradients of 1 + σ and 1 − σ in turn: the mean of the last two steps."""
    spread = np.geomspace(0.03, 10.0, 51)
    sign = np.where(np.arange(1000) % 2, -1.0, 1.0)
    gradients = 1 + spread * sign[:, None]
    rms, stddev = optax_rmsprop.scale_by_rms(0.99), optax_rmsprop.scale_by_stddev(0.99)
    return listed(
        {
            "spread of the gradients, whose mean is 1": spread,
            "by the root mean square": -steps(rms, gradients)[-2:].mean(0),
            "by the standard deviation": -steps(stddev, gradients)[-2:].mean(0),
        }
    )


def decay() -> Curves:
    """Two weights of 1, whose gradients of ±3 and ±0.3 cancel, with λ = 0.1 and η = 0.01."""
    sign = np.where(np.arange(300) % 2, -1.0, 1.0)
    gradients = jnp.asarray(sign[:, None] * np.array([3.0, 0.3]))
    coupled = optax_rmsprop.chain(
        optax_rmsprop.add_decayed_weights(0.1), optax_rmsprop.rmsprop(0.01)
    )
    decoupled = optax_rmsprop.rmspropw(0.01, weight_decay=0.1)
    l2, own = (run(tx, gradients, jnp.ones(2))[1][9::10] for tx in (coupled, decoupled))
    return listed(
        {
            "step": np.arange(10, 301, 10),
            "L2, gradients of ±0.3": l2[:, 1],
            "decoupled, any gradients": own[:, 0],
            "L2, gradients of ±3": l2[:, 0],
        }
    )


def listed(curves: dict[str, Any]) -> Curves:
    """Numbers as JSON can have them, to seven digits."""
    return {name: [float(f"{x:.7g}") for x in np.asarray(c)] for name, c in curves.items()}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A switch, and how its curves are shown; the first curve is the horizontal axis."""

    curves: Callable[[], Curves]
    ylabel: str
    scales: tuple[str, str] = ("linear", "linear")


PICTURES = {
    "eps": Picture(eps, "step / learning rate", ("log", "log")),
    "start": Picture(start, "step / learning rate"),
    "rate": Picture(rate, "length of the step"),
    "centering": Picture(centering, "step / learning rate", ("log", "log")),
    "decay": Picture(decay, "weight"),
}


def draw(path: pathlib.Path, picture: Picture) -> None:
    """Write a picture, on white: it is read on a dark page too."""
    curves = picture.curves()
    (xlabel, x), *lines = curves.items()
    with mpl.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(4.2, 2.9), layout="constrained")
        axes = figure.subplots()
        for name, y in lines:
            axes.plot(x, y, label=name)
        axes.set(xlabel=xlabel, ylabel=picture.ylabel)
        axes.set(xscale=picture.scales[0], yscale=picture.scales[1])
        figure.legend(loc="outside upper left")
        about = {"Description": json.dumps(curves, ensure_ascii=False), "Date": None}
        with replacing(path) as new:
            figure.savefig(new, format="svg", metadata=about)


def drawn(path: pathlib.Path) -> Curves:
    """The numbers of a picture that was written."""
    found = ElementTree.parse(path).iter("{http://purl.org/dc/elements/1.1/}description")
    return json.loads("".join(next(found).itertext()))


def main() -> None:
    """Write all."""
    FOLDER.mkdir(exist_ok=True)
    for name, picture in PICTURES.items():
        draw(FOLDER / f"{name}.svg", picture)


if __name__ == "__main__":
    main()
