"""A network that trains in PyTorch and in Flax: `compare` sees no difference but a planted one."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

from optax_rmsprop import compare, dialects, recording
from tests.live import needed
from tests.live.test_recording import lines

STEPS, BATCH = 12, 32
OPTIONS = {"lr": 3e-3, "alpha": 0.9, "eps": 1e-3, "momentum": 0.9, "weight_decay": 0.01}


def batches():
    """Handwritten digits in [0, 1], and their labels."""
    x, y = load_digits(return_X_y=True)
    x, y = x[: STEPS * BATCH] / 16, y[: STEPS * BATCH]
    return list(zip(np.split(x.astype(np.float32), STEPS), np.split(y, STEPS), strict=True))


def torch_run(path, reduction="mean", **options):
    """The run that the documentation's lines write."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10)
    )
    world = {
        "model": model, "path": path,
        "batches": [(torch.tensor(x).reshape(-1, 1, 8, 8), torch.tensor(y)) for x, y in batches()],
        "optimizer": torch.optim.RMSprop(model.parameters(), **OPTIONS | options),
        "loss_of": lambda x, y: torch.nn.functional.cross_entropy(x, y, reduction=reduction),
    }  # fmt: skip
    exec(lines("PyTorch"), world)
    return recording.Run.load(path)


class Net(nnx.Module):
    """The same network, with its kernels as Flax has them."""

    def __init__(self, params):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(1, 4, (3, 3), padding="VALID", rngs=rngs)
        self.dense = nnx.Linear(144, 10, rngs=rngs)
        state = nnx.state(self, nnx.Param)
        nnx.replace_by_pure_dict(state, params)
        nnx.update(self, state)

    def __call__(self, x):
        x = nnx.relu(self.conv(x.reshape(-1, 8, 8, 1)))
        return self.dense(x.transpose(0, 3, 1, 2).reshape(len(x), -1))  # flattened as PyTorch does


def flax_run(tx, params):
    """The run that `record` keeps."""
    tx = recording.record(tx, STEPS)
    model = Net(params)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(loss)(model))

    for x, y in batches():
        step(model, optimizer, x, y)
    return recording.Run.of(optimizer.opt_state, tx)


@pytest.mark.parametrize(
    ["fault", "name"],
    [
        ({}, None),
        ({"reduction": "sum"}, "gradient_factor"),
        ({"eps": 1e-5}, "eps"),
        ({"momentum": 0.0}, "momentum"),
        ({"centered": True}, "centered"),
    ],
)
def test_pytorch_against_flax(tmp_path, fault, name):
    needed("torch")
    theirs = torch_run(tmp_path / "theirs.npz", **fault)
    first = {path: jnp.asarray(x[0]) for path, x in theirs.params.items()}
    params = {
        "conv": {"kernel": first["0.weight"].transpose(2, 3, 1, 0), "bias": first["0.bias"]},
        "dense": {"kernel": first["3.weight"].T, "bias": first["3.bias"]},
    }
    ours = flax_run(dialects.torch(**OPTIONS), params)
    rename = {
        theirs_path: next(p for p in ours.params if layer in p and kind in p)
        for theirs_path, layer, kind in (
            ("0.weight", "conv", "kernel"), ("0.bias", "conv", "bias"),
            ("3.weight", "dense", "kernel"), ("3.bias", "dense", "bias"),
        )
    }  # fmt: skip
    found = compare.runs(theirs, ours, rename)
    if name is None:
        assert found.first is None and not found.causes and not found.unexplained, str(found)
    else:
        assert found.causes[0].names == (name,) and found.causes[0].left == 0, str(found)
        assert not found.unexplained and found.first is not None
