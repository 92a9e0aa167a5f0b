"""The lines for other frameworks write the file that `Run.load` reads."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from optax_rmsprop import dialects
from optax_rmsprop.recording import Run
from tests.live import needed

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "recording.md"
STEPS = 5


def lines(framework):
    section = PAGE.read_text("utf-8").partition(f"## In {framework}\n")[2]
    return re.findall(r"```py\n(.*?)```", section, re.DOTALL)[0]


def assert_made_by(tx, run):
    """The parameters of a run are what the rule makes of its gradients."""
    assert run.is_from_start and len(run.steps) == STEPS
    p = {path: x[0] for path, x in run.params.items()}
    state = tx.init(p)
    for i in range(STEPS):
        g = {path: x[i] for path, x in run.grads.items()}
        updates, state = jax.jit(tx.update)(g, state, p)
        p = optax.apply_updates(p, updates)
        for path, x in run.params.items():
            # A few roundings of the parameter, of size 1, and of the step a step.
            np.testing.assert_allclose(p[path], x[i + 1], rtol=0, atol=2e-6 * (i + 1))


def test_pytorch(tmp_path):
    needed("torch")
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    model[0].requires_grad_(False)
    model.unused = torch.nn.Identity()
    model.unused.head = torch.nn.Parameter(torch.ones(2))
    batches = [(torch.randn(8, 4), torch.randn(8, 3)) for _ in range(STEPS)]
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.9)
    world = {
        "model": model, "batches": batches, "optimizer": optimizer,
        "loss_of": torch.nn.functional.mse_loss, "path": tmp_path / "torch.npz",
    }  # fmt: skip
    exec(lines("PyTorch"), world)
    run = Run.load(tmp_path / "torch.npz")
    assert {path: x.shape for path, x in run.params.items()} == {
        "1.weight": (STEPS + 1, 3, 4), "1.bias": (STEPS + 1, 3), "unused.head": (STEPS + 1, 2),
    }  # fmt: skip
    assert not run.grads["unused.head"].any()
    assert run.settings["call"].startswith("RMSprop (")
    np.testing.assert_array_equal(run.learning_rates, np.full(STEPS, 0.01))
    assert_made_by(dialects.torch(lr=0.01, momentum=0.9), run)


KERAS = """
import keras
import numpy as np
keras.utils.set_random_seed(0)
class Dense(keras.layers.Dense):
    def build(self, shape):
        super().build(shape)
        self.unused = self.add_weight(shape=(2,), name="unused")
model = keras.Sequential([keras.Input((4,)), Dense(3)])
optimizer, loss = keras.optimizers.RMSprop(0.01, momentum=0.9), "mse"
rng = np.random.default_rng(0)
x, y = (rng.normal(size=(8 * {steps}, n)).astype(np.float32) for n in (4, 3))
path = {path!r}
{lines}
"""


def test_keras(tmp_path):
    needed("keras", "tensorflow")
    code = lines("Keras").replace("model.fit(x, y)", "model.fit(x, y, batch_size=8, verbose=0)")
    path = tmp_path / "keras.npz"
    program = KERAS.format(steps=STEPS, path=str(path), lines=code)
    # Other tests of this process have Keras on JAX, where it calls no optimizer step by step.
    environment = os.environ | {"KERAS_BACKEND": "tensorflow"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=environment, check=True)
    run = Run.load(path)
    assert sorted(x.shape for x in run.grads.values()) == [(STEPS, 2), (STEPS, 3), (STEPS, 4, 3)]
    assert "learning_rate" in run.settings["call"]
    assert_made_by(dialects.keras(0.01, momentum=0.9), run)
