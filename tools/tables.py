"""Write the truth table into its page and the site's script: `python -m tools.tables`."""

import pathlib
from typing import Any

from tools import site
from tools.environment import write_text
from tools.truth import KNOWN, REQUIRED, ROWS, Row

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "dialects.md"
SCRIPT = ROOT / "docs" / "_static" / "truth.js"

DENOMINATOR = {
    "inside": "√(ν+ε)",
    "outside": "√ν+ε",
    "max": "max(√ν, ε)",
    "both": "√(ν+ε)+ε",
    "inside_minus": "√(ν−m²−ε)",
    "none": "√ν",
}

HEAD = """# Every framework's RMSprop

Written by `python -m tools.tables` from `tools/truth.py`. The tests on recorded trajectories and
on the frameworks themselves are made from the same rows, and each row is compared with the call
that it names.

A step, with g the gradient, ν the average of g², m the average of g, b the momentum buffer, p the
parameter; η the learning rate, ρ the weight of the past, μ the momentum, ε epsilon, λ the decay:

    g ← g + λ·p                      if the decay is L2
    ν ← ρ·ν + (1−ρ)·g²,  m ← ρ·m + (1−ρ)·g
    D = the denominator below; centred, with ν−m² in place of ν
    p ← p − η·λ·p                    if the decay is decoupled
    b ← μ·b + η·g/D,  p ← p − b      the rate in the buffer
    b ← μ·b + g/D,    p ← p − η·b    the rate after the buffer

The last two differ once η changes while μ > 0. Without momentum a step is η·g/D. m and b start at
0. In the defaults, – is what a framework does not have, and ? what was not read or is not stated.
`learning_rate` in a call is yours: there is no default. [Compare the rules](compare.md) on
gradients of your own.

<div id="chooser"></div>

"""

KNOWN_AS = "\n".join(f"- **{name}**: {meaning}." for name, meaning in KNOWN.items())

TAIL = f"""
How each row is known:

{KNOWN_AS}

## What the frameworks round

In float64 two correct implementations still differ by 1e-7 where one of them rounds its numbers to
float32 first: TensorFlow 1, Sonnet and MXNet round all of them, Paddle ρ, ε and μ, Keras 3 the
rate, tf_keras's legacy optimizer the rate, ρ and μ. The dialects round nothing: to compare in
float64, pass `float(np.float32(0.9))`. In float32 there is one more difference: 1−ρ is formed in
double and then rounded (PyTorch, Optax, Keras, and here), or from the rounded ρ (TensorFlow 1,
Sonnet, Paddle, MXNet), which at ρ = 0.9 is a relative difference of 2e-7 in ν.

## Sparse gradients

TensorFlow 1 and Sonnet move only the rows of an embedding that a batch has seen: the rule is
applied to these rows of the parameter and of its state, and the others stay as they are. In JAX:

```python
import jax
import jax.numpy as jnp
from optax_rmsprop import dialects

tx = dialects.tensorflow1(learning_rate=0.1, momentum=0.9)
table = jnp.ones((1000, 16))
state = tx.init(table)

rows, grads = jnp.array([3, 17]), jnp.ones((2, 16))  # no row twice: sum its gradients first
part = jax.tree.map(lambda x: x[rows] if x.ndim else x, state)
updates, part = tx.update(grads, part)
state = jax.tree.map(lambda x, new: x.at[rows].set(new) if x.ndim else new, state, part)
table = table.at[rows].add(updates)
```

## What is not reproduced

- NaN: of PyTorch, Optax and Keras on constant gradients in centred mode, and of 0/0; of
  TensorFlow.js in centred mode wherever the variance is below ε, where the call takes no step.
- Options that are accepted and ignored: momentum in bitsandbytes, `centered` without momentum in
  Keras 2.3.
- Numbers out of range: Keras 3 takes ρ = 1 and μ = 1, and every ε. Here ρ and μ are below 1, and
  ε is not below 0.
- MindSpore's CPU kernel has ε outside the root in its vector lanes and inside elsewhere.
- bitsandbytes' 8-bit state, whose rounding is another algorithm; its first step is the formula's.
- TensorFlow 1's square of a complex gradient, which is not conjugated: ν is then complex, and a
  step can point anywhere. `tensorflow1` takes |g|².
- Optax's first step with `centered` and `bias_correction`: one sample has no variance, and Optax
  divides by √ε. Here it is divided by |g|.
- SMORMS3 and CNTK's RMSProp have a memory or a step for each weight that adapts to what it sees.

<script src="../_static/truth.js"></script>
<script src="../_static/dom.js"></script>
<script src="../_static/chooser.js"></script>
"""


def denominator(row: Row) -> str:
    """D, for each setting that decides it."""
    mode = row.switch["eps_mode"]
    if not callable(mode):
        return DENOMINATOR[mode]
    settings = {
        "μ = 0": {"momentum": 0.0, "centered": False},
        "μ > 0": {"momentum": 0.9, "centered": False},
        "centred": {"momentum": 0.0, "centered": True},
    }
    modes = {name: mode(setting) for name, setting in settings.items()}
    plain = modes.pop("μ = 0")
    if modes["μ > 0"] != plain:
        return f"{DENOMINATOR[plain]} if μ = 0, {DENOMINATOR[modes['μ > 0']]} if μ > 0"
    return f"{DENOMINATOR[plain]}; centred {DENOMINATOR[modes['centred']]}"


def rate(row: Row) -> str:
    """Where the learning rate is, seen from the momentum buffer."""
    if not row.call:
        return "–"
    η, _, μ, _ = row.defaults
    if row.switch["lr_place"] == "none" or (μ is None and η is not None):
        return "no buffer"
    place = "in" if row.switch["lr_place"] == "inside" else "after"
    return place + (", Nesterov" if row.switch["nesterov"] else "")


def defaults(row: Row) -> str:
    """η, ρ, μ, ε."""
    unread = row.defaults.count(None) == 4
    shown = (number(value, unread) for value in row.defaults)
    return ", ".join(shown)


def number(value: Any, unread: bool) -> str:
    """A default: – is what does not exist, ? what is not known."""
    if value is None:
        return "?" if unread else "–"
    if value == REQUIRED:
        return "required"
    return f"{value:g}".replace("e-0", "e-")


def start(row: Row) -> str:
    """ν₀."""
    value = row.switch["v_init"]
    return value if isinstance(value, str) else f"{value:g}"


def table(columns: dict[str, Any], rows: list[Row]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [str(cell(row)).replace("|", "\\|") or "–" for cell in columns.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def call(row: Row) -> str:
    """The call as code."""
    return f"`{row.call}`" if row.call else "none"


def page() -> str:
    """`docs/dialects.md`."""
    columns = {
        "framework and version": lambda row: row.framework,
        "D": lambda row: denominator(row) if row.call else "–",
        "ν₀": lambda row: start(row) if row.call else "–",
        "η and the buffer": rate,
        "centred": lambda row: row.centered if row.call else "–",
        "decay": lambda row: row.decay if row.call else "–",
        "clips": lambda row: row.clips,
        "defaults η, ρ, μ, ε": defaults,
        "call": call,
        "known": lambda row: row.known,
        "note": lambda row: row.note,
    }
    return HEAD + table(columns, ROWS) + "\n" + TAIL


def main() -> None:
    """Write both."""
    write_text(PAGE, page())
    write_text(SCRIPT, site.script())


if __name__ == "__main__":
    main()
