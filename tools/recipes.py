"""Write the recipes into their page: `python -m tools.recipes`."""

import inspect
import math
import pathlib
from typing import Any

from optax_rmsprop import recipes
from optax_rmsprop.recipes import Decays, Linear, Ramp, Recipe, Stages, Staircase, WarmUp
from tools.environment import write_text
from tools.tables import table

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "recipes.md"

GROUPS = {
    "Images": [
        "efficientnet", "mnasnet", "mixnet", "mobilenet_v1_tpu", "inception_v2_tpu",
        "inception_v3_tpu", "inception_v4_tpu", "amoebanet_d_tpu", "timm_efficientnet_b0",
        "timm_efficientnet_b2", "timm_efficientnet_es", "timm_mixnet_xl",
        "timm_mobilenetv3_large_100",
    ],
    "Reinforcement learning": [
        "dqn", "dqn_zoo", "dqn_dopamine", "double_dqn", "prioritized_dqn", "minatar_dqn", "a2c",
        "acer", "a2c_sb3", "a2c_sb3_atari", "impala", "torchbeast", "cleanba", "pymarl",
        "dreamer_v3",
    ],
    "Language, sequences and generated images": [
        "dpo", "wgan", "char_rnn", "dnc", "show_attend_tell",
    ],
}  # fmt: skip

# An epoch of one step shows a schedule in epochs.
EPOCHS = {"steps_per_epoch": 1.0, "num_envs": 1.0}

HEAD = """# Recipes

A recipe is RMSprop as a paper's code sets it: the rule, every number, the schedule, the weight
decay and the clipping, in one call. `python -m tools.recipes` writes these tables from the records
that the calls are made of. Every number was read in the repository, at the linked commit.
[Porting a paper](porting.md) explains what the numbers mean, and [the reference](api/recipes.md)
has the arguments.

```python
import jax
import jax.numpy as jnp
import optax
from optax_rmsprop import recipes

tx = recipes.efficientnet(batch_size=512, steps_per_epoch=200.5)
params = {"kernel": jnp.ones((3, 2)), "BatchNorm": jnp.ones(2)}
state, average = tx.init(params), params

recipe = recipes.record("efficientnet", batch_size=512, steps_per_epoch=200.5)
for n in range(3):
    grads = jax.tree.map(jnp.ones_like, params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    average = optax.incremental_update(params, average, 1 - recipe.average(n))  # to evaluate
```

What a source did not vary can be changed in the record, which is plain data:

```python
import dataclasses

faster = dataclasses.replace(recipes.record("impala"), learning_rate=1e-3)
tx = recipes.build(faster)
```

In the tables η is the learning rate before it falls, B the batch, ρ the decay of the averages, μ
the momentum and ε epsilon. A dash means none. Weight decay is L2 in all of them: a part of the
gradient. Gradients are clipped after it and before RMSprop. *Matrices* are leaves of two axes and
more. Some trainers evaluate an average of the weights. Its decay is the number in the table, or
rises to it as (1+n)/(10+n).

A loss that is a sum over the batch must stay one, or ε and the clipping are other numbers: see
[A sum in place of a mean](porting.md#a-sum-in-place-of-a-mean-another-batch-size). PyTorch clips
by the norm + 1e-6, and this package by the norm.

"""

TAIL = """
## What is not here

| recipe | what is missing |
|---|---|
| MobileNetV2, EfficientNetV2 | a second reading of the trainers, at one commit |
| MobileNetV3 of Google | ρ and ε, in its code; `timm_mobilenetv3_large_100` is timm's |
| MobileNetV3 of torchvision | the commit, and what decays |
| EfficientNet with noisy students, NASNet, PNASNet | ε and the schedule, in the authors' code |
| Inception-v3, Inception-v4 and AmoebaNet of the papers | the papers' code |
| A3C, Ape-X | the authors' code; others' differ in what ν starts at |
| Graves (2013), NTM | the authors' code |
| ACER with a rate that falls | the number of updates for a step of the environments is drawn |

Some work is thought to use RMSprop and uses Adam: C51, Rainbow and IQN in Dopamine and DQN Zoo,
DQN in Dopamine on JAX, DQN and PPO in OpenAI Baselines, and the COCO script of Show, Attend and
Tell.
"""


def arguments(name: str, **others: float) -> dict[str, float]:
    """The arguments with which a recipe is in epochs, and for a batch of 256."""
    known = inspect.signature(getattr(recipes, name)).parameters
    given = EPOCHS | {"batch_size": 256.0} | others
    if name in ("impala", "torchbeast", "cleanba"):  # where the rate does not follow the batch
        del given["batch_size"]
    return {key: value for key, value in given.items() if key in known}


def first(rate: Any) -> float:
    """The rate before it falls."""
    while isinstance(rate, (WarmUp, Stages)):
        rate = rate.after
    return getattr(rate, "learning_rate", rate)


def start(name: str) -> str:
    """η, and how it follows the batch."""
    rate, twice = (
        first(recipes.record(name, **arguments(name, batch_size=b)).learning_rate)
        for b in (256.0, 512.0)
    )
    return f"{number(rate)}·B/256" if math.isclose(twice, 2 * rate) else number(rate)


def schedule(name: str) -> str:
    """The schedule in words, in epochs where the source has them."""
    rate = recipes.record(name, **arguments(name)).learning_rate
    words = list[str]()
    if isinstance(rate, WarmUp):
        unit = "epochs" if isinstance(rate.after, Staircase) else "updates"
        words.append(f"rises for {rate.steps} {unit}, update by update")
    elif isinstance(rate, Stages):
        stages = ", ".join(f"η × {x / first(rate):.3g}" for x in rate.rates[1:])
        words.append(f"epochs of {number(rate.rates[0])}, {stages}")
    rate = getattr(rate, "after", rate)
    if isinstance(rate, Staircase):
        after = f" after epoch {rate.hold + 1:g}" if rate.hold else ""
        each = "epoch" if rate.every == 1 else f"{rate.every:g} epochs"
        whole = ", at the start of one" if name.startswith("timm") else ""
        words.append(f"× {rate.factor:g} each {each}{after}{whole}")
        words += [f"at least η × {rate.least / rate.learning_rate:g}"] if rate.least else []
    elif isinstance(rate, Linear):
        words.append("a line to 0" + (f", once in {rate.unit} updates" if rate.unit > 1 else ""))
    return "; ".join(words) or "constant"


def decayed(recipe: Recipe) -> str:
    """λ, and what decays."""
    if not recipe.weight_decay:
        return "–"
    assert isinstance(recipe.mask, Decays)
    what = "matrices" if recipe.mask.axes == 2 else "all but batch normalization"
    what += " not named bias" if recipe.mask.but == "bias" else ""
    return f"{number(recipe.weight_decay)}, {what}"


def clipping(recipe: Recipe) -> str:
    """The bound on gradients, and of what it is one."""
    if recipe.clip is None:
        return "–"
    given = recipe.clip.init.call.arguments
    if "bound" in given:
        return f"each entry to ±{given['bound']:g}"
    if "norm" in given:
        return f"{given['norm']:g}, the norm of all"
    return f"{given['clipping']:g} of each parameter's norm, or of {given['eps']:g}"


def averaged(recipe: Recipe) -> str:
    """The decay of the average of the weights."""
    average = recipe.average
    if isinstance(average, Ramp):
        return f"rises to {average.decay:g}"
    return "–" if average is None else f"{average:g}"


def source(recipe: Recipe) -> str:
    """The paper, and a link to the file."""
    assert recipe.source
    paper, repository, commit, path = recipe.source
    return f"{paper}: [{repository}](https://github.com/{repository}/blob/{commit}/{path})"


def call(name: str) -> str:
    """The call, with what a source does not say."""
    parameters = inspect.signature(getattr(recipes, name)).parameters.values()
    return f"`{name}({', '.join(p.name for p in parameters if p.default is p.empty)})`"


def rule(recipe: Recipe) -> str:
    """The dialect, and whether it is centred."""
    centered = recipe.centered or recipe.dialect == "graves"
    return f"`{recipe.dialect}`" + ", centred" * centered


def number(value: float) -> str:
    """A number with ten digits at most."""
    return f"{value:.10g}".replace("e-0", "e-")


def rows(names: list[str]) -> str:
    """The table of some recipes."""
    known = {name: recipes.record(name, **arguments(name)) for name in names}
    columns = {
        "recipe": call,
        "rule": lambda name: rule(known[name]),
        "η": start,
        "schedule": schedule,
        "ρ, μ, ε": lambda name: ", ".join(
            number(x) for x in (known[name].decay, known[name].momentum, known[name].eps)
        ),
        "weight decay": lambda name: decayed(known[name]),
        "clipping": lambda name: clipping(known[name]),
        "average of weights": lambda name: averaged(known[name]),
        "loss": lambda name: known[name].loss,
        "beside it": lambda name: known[name].beside or "–",
        "source": lambda name: source(known[name]),
    }
    return table(columns, names)


def page() -> str:
    """`docs/recipes.md`."""
    tables = [f"## {group}\n\n{rows(names)}\n" for group, names in GROUPS.items()]
    return HEAD + "\n".join(tables) + TAIL


def main() -> None:
    """Write it."""
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
