"""The trajectories that the frameworks themselves made, and the same runs through the public calls.

The runs are in tests/data, numbers only: explicit gradients, and the parameters after each step.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tools.truth import row_of

DATA = pathlib.Path(__file__).parents[1] / "tests" / "data"
ARRAYS = np.load(DATA / "rmsprop_goldens.npz")
RECORDS = json.loads((DATA / "rmsprop_goldens.json").read_text(encoding="utf-8"))
NAMES = sorted(RECORDS["configs"])

# No call gives these, or not all of their numbers. The tests check each reason where they can.
EXCEPTIONS = {
    "mindspore/eps": "the CPU's vector lanes have epsilon outside the root, the others inside",
    "mindspore/constg_cent_mom": "rounding decides which elements are skipped (v − m² + ε ≤ 0)",
    "tf1/complex": "the square of a complex gradient without conjugation is no second moment",
    "chainer/smorms3": "SMORMS3 has a memory for each weight, which no RMSprop has",
}
FIRST_STEP_ONLY = {
    "bnb/8": "the state is rounded to 8 bits between the steps",
    "bnb/8_wd": "the state is rounded to 8 bits between the steps",
}
NOT_THE_FIRST_STEP = {
    "optax/bc_cent": "one sample has no variance: Optax divides by √ε, this package by |g|",
}
# Then 1 − ρ is not 1 − float32(ρ): at ρ = 0.99 the two differ by 16 half-ulps.
FORM_1_MINUS_DECAY_IN_DOUBLE = {"mlx", "bnb", "heavyball"}

Run = dict[str, Any]


def recorded(name: str) -> np.ndarray:
    """The parameters that the framework had after each step."""
    return ARRAYS[name.replace("/", "__", 1)]


def rounded(run: Run) -> Run:
    """The configuration as the framework used it, some numbers having passed through float32."""
    run = dict(run)
    names = {"lr", "decay", "eps", "momentum", "weight_decay", "clip_value", "clip_weights"}
    if run["framework"] in FORM_1_MINUS_DECAY_IN_DOUBLE:
        names.remove("decay")
    for name in names if run["dtype"] == "float32" else run["f32_rounded"]:
        if run.get(name) is not None:
            run[name] = float(np.float32(run[name]))
    if run.get("wd_factor_f32"):
        # Keras' torch backend multiplies the parameters by 1 − ηλ in float32.
        run["weight_decay"] = (1 - float(np.float32(1 - run["lr"] * run["weight_decay"]))) / run[
            "lr"
        ]
    return run


def inputs(name: str, run: Run) -> tuple[np.ndarray, np.ndarray, Any]:
    """Initial parameters and gradients [steps, ...], as `format` and `inputs` of the file say."""
    p, g, rates = ARRAYS["P0"], ARRAYS["G"], ARRAYS["LRS"]
    if run["dtype"] == "float32":
        p, g, rates = (x.astype(np.float32).astype(float) for x in (p, g, rates))
    elif run["dtype"] == "complex128":
        p, g = p + 1j * p[::-1], g + 1j * g[:, ::-1]
    if run["schedule"] == "constant":
        return p, g, run["lr"]
    if run["schedule"] == "explicit":
        rates = np.array(run["lr_values"])
    rates = rates.astype(np.float32).astype(float) if "lr" in run["f32_rounded"] else rates
    return p, g, rates


def as_schedule(rates: Any, first: int) -> Any:
    """A number, or the recorded rates by the count, which begins at `first`."""
    return rates if np.ndim(rates) == 0 else lambda count: jnp.asarray(rates)[count - first]


def moments(state: Any) -> tuple[jax.Array, jax.Array]:
    """ν and m of an RMSprop state; ν is var + |m|² where the state has the variance."""
    nu, mu = optax.tree.get(state, "nu"), optax.tree.get(state, "mu")
    if mu is None:
        return nu, jnp.zeros_like(nu)
    return optax.tree.get(state, "var") + jnp.abs(mu) ** 2, mu


def trajectory(
    tx: optax.GradientTransformation, params: np.ndarray, grads: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parameters before the first step and after each, and ν and m as each step used them."""

    def step(carry: Any, g: jax.Array) -> Any:
        params, state = carry
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, *moments(state))

    def run(params: jax.Array, grads: jax.Array) -> Any:
        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    after, nu, mu = jax.jit(run)(jnp.asarray(params), jnp.asarray(grads))
    return np.concatenate([params[None], after]), np.asarray(nu), np.asarray(mu)


def rows_only(
    tx: optax.GradientTransformation, params: jax.Array, grads: np.ndarray, rows: Any
) -> np.ndarray:
    """Sparse gradients: the rule applied to the rows of parameters and state that have one.

    A framework's lazy rows are a gather, the dense rule, and a scatter: nothing of the rule itself.
    """
    state, history = tx.init(params), [params]
    for values, at in zip(grads, rows, strict=True):
        at, inverse = np.unique(at, return_inverse=True)
        summed = np.zeros((len(at), params.shape[1]))
        np.add.at(summed, inverse, values)
        part = jax.tree.map(lambda x, at=at: x[at] if jnp.ndim(x) else x, state)
        updates, new = tx.update(jnp.asarray(summed), part, params[at])
        state = jax.tree.map(lambda x, y, at=at: x.at[at].set(y) if jnp.ndim(x) else y, state, new)
        params = jnp.asarray(params).at[at].add(updates)
        history.append(params)
    return np.stack(history).reshape(len(history), -1)


class Replay(NamedTuple):
    """A recorded run as our call makes it."""

    run: Run
    grads: np.ndarray
    rates: Any
    after: np.ndarray  # the parameters before the first step and after each
    nu: np.ndarray | None = None  # as each step used it; None where gradients are sparse
    mu: np.ndarray | None = None


@functools.cache
def replay(name: str) -> Replay:
    """Make a recorded run again, in float64."""
    row, run = row_of(name), rounded(RECORDS["configs"][name])
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        params, grads, rates = inputs(name, run)
        tx = row.translated(run, as_schedule(rates, row.first_count))
        if not run.get("sparse"):
            return Replay(run, grads, rates, *trajectory(tx, params, grads))
        rows, table = RECORDS["inputs"]["sparse"]["rows"], jnp.asarray(params[:36].reshape(12, 3))
        after = rows_only(tx, table, grads[:, :12].reshape(-1, 4, 3), rows)
        return Replay(run, grads, rates, after)


def error(name: str) -> np.ndarray:
    """|ours − recorded| for each step and coordinate, 0 where they are not compared."""
    return difference(name, replay(name).after)


def difference(name: str, after: np.ndarray) -> np.ndarray:
    """|p − recorded| of the parameters that any program has, compared as `error` does."""
    theirs = recorded(name)
    found = np.abs(after - theirs)
    if name in NOT_THE_FIRST_STEP:
        found[:2] = 0.0
        found[2:] = np.abs(np.diff(after, axis=0) - np.diff(theirs, axis=0))[1:]
    if name in FIRST_STEP_ONLY:
        found[2:] = 0.0
    # A defect that is not reproduced.
    found[:, RECORDS["configs"][name].get("nan_coordinates", [])] = 0.0
    return found
