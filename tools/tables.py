"""Write the truth table into its page and the site's script: `python -m tools.tables`."""

import pathlib
from typing import Any

from tools import packaged, site
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

Choose your framework below: the call has its rule and its defaults. `python -m tools.tables` writes
this page from `tools/truth.py`. The tests compare every row with its call, and the calls with
recorded runs of the frameworks. [Compare the rules](compare.md) on gradients of your own.

<div id="chooser"></div>

The columns name the parts of a step. g is the gradient, ν the average of g², m the average of g, b
the momentum buffer, p the parameter, η the learning rate, ρ the decay of the averages, μ the
momentum, ε epsilon, and λ the weight decay:

    g ← g + λ·p                      if the weight decay is L2
    ν ← ρ·ν + (1−ρ)·g²,  m ← ρ·m + (1−ρ)·g
    D = the denominator in the table; centred, with ν−m² in place of ν
    p ← p − η·λ·p                    if the weight decay is decoupled
    b ← μ·b + η·g/D,  p ← p − b      if η is in the buffer
    b ← μ·b + g/D,    p ← p − η·b    if η is after the buffer

The last two lines differ once η changes while μ > 0. Without momentum a step is η·g/D. m and b
start at 0, and ν at ν₀. Among the defaults, – means that the framework has no such number, and ?
that its source was not read or does not say. If a call has `learning_rate`, the framework has no
default for it.

"""

KNOWN_AS = "\n".join(f"- **{name}**: {meaning}." for name, meaning in KNOWN.items())

TAIL = f"""
The column *known* says how the rule of a row is known:

{KNOWN_AS}

## What the frameworks round

Some frameworks round hyperparameters to float32 before they use them, so two correct
implementations can differ by 1e-7 in float64. TensorFlow 1, Sonnet and MXNet round all of them.
Paddle rounds ρ, ε and μ. Keras 3 rounds the learning rate. tf_keras's legacy optimizer rounds the
learning rate, ρ and μ. The dialects round none. To compare in float64, pass
`float(np.float32(0.9))`.

In float32 there is another difference. PyTorch, Optax, Keras and this package compute 1−ρ in double
precision and then round it. TensorFlow 1, Sonnet, Paddle and MXNet round ρ first. At ρ = 0.9 this
is a relative difference of 2e-7 in ν.

## Sparse gradients

TensorFlow 1 and Sonnet change only the rows of an embedding that occur in a batch. They apply the
rule to these rows of the parameter and of its state, and leave the others as they are. In JAX:

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

- NaN. PyTorch, Optax and Keras give NaN on constant gradients in centred mode, and for 0/0.
  TensorFlow.js gives NaN in centred mode where the variance is below ε; the dialect makes no step
  there.
- Options that a framework accepts and ignores: momentum in bitsandbytes, and `centered` without
  momentum in Keras 2.3.
- Numbers out of range. Keras 3 accepts ρ = 1, μ = 1 and every ε. Here ρ and μ must be below 1, and
  ε must not be negative.
- MindSpore's CPU kernel, which adds ε outside the root in its vector lanes and inside elsewhere.
- bitsandbytes' 8-bit state, which rounds by another algorithm. Its first step is reproduced.
- TensorFlow 1's square of a complex gradient. It is not conjugated, so ν is complex and a step can
  point anywhere. `tensorflow1` averages |g|².
- Optax's first step with `centered` and `bias_correction`. One gradient has no variance, and Optax
  divides by √ε. This package divides by |g|.
- SMORMS3 and CNTK's RMSProp, where each weight has its own memory or step size.

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
        "call": call,
        "D": lambda row: denominator(row) if row.call else "–",
        "ν₀": lambda row: start(row) if row.call else "–",
        "η and the buffer": rate,
        "centred": lambda row: row.centered if row.call else "–",
        "weight decay": lambda row: row.decay if row.call else "–",
        "clips": lambda row: row.clips,
        "defaults η, ρ, μ, ε": defaults,
        "known": lambda row: row.known,
        "note": lambda row: row.note,
    }
    return HEAD + table(columns, ROWS) + "\n" + TAIL


def main() -> None:
    """Write them, and the table that the package has."""
    write_text(PAGE, page())
    write_text(SCRIPT, site.script())
    write_text(packaged.FILE, packaged.frameworks())


if __name__ == "__main__":
    main()
