"""A checkpoint that is converted: k steps there, k steps here, k steps there, as 3k steps there."""

import argparse
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_rmsprop import dialects
from optax_rmsprop.cli import main
from tests.live import needed
from tests.live.test_interop import (
    RATE,
    SETTINGS,
    K,
    Torch,
    assert_close,
    both_widths,
    every_setting,
    makers,
    problem,
)
from tools.frameworks import stable_baselines3_optimizer, their_own_world

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
both_formats = pytest.mark.parametrize("to", ["ours", "ours.npz"])


def run(capsys, *arguments, status=0):
    """A command, and what it printed as JSON."""
    capsys.readouterr()
    code = main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert code == status, err
    return json.loads(out) if "--json" in arguments else out


def transformation(record):
    (group,) = record["groups"]
    return eval(group["call"], {"dialects": dialects})


def read(path, like):
    """What a user does: fill a tree of the same structure."""
    if path.suffix != ".npz":
        from orbax.checkpoint import v1 as ocp

        # As NumPy's, since Orbax has threads, in which 64 bits are off.
        tree = ocp.load(path.absolute(), jax.tree.map(np.asarray, like))
        return jax.tree.map(jnp.asarray, tree)
    with np.load(path) as file:
        name = lambda at: jax.tree_util.keystr(at, simple=True, separator="/")  # noqa: E731
        return jax.tree_util.tree_map_with_path(lambda at, x: jnp.asarray(file[name(at)]), like)


def save(path, tree):
    if path.suffix != ".npz":
        from orbax.checkpoint import v1 as ocp

        return ocp.save(path.absolute(), tree)
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = lambda at: jax.tree_util.keystr(at, simple=True, separator="/")  # noqa: E731
    np.savez(path, **{name(at): np.asarray(x) for at, x in leaves})


def go_on(tx, tree, grads):
    """Steps in JAX."""
    params, state = tree["params"], tree["opt_state"]
    for g in grads:
        updates, state = tx.update(jax.tree.map(jnp.asarray, g), state, params)
        params = optax.apply_updates(params, updates)
    return {"params": params, "opt_state": state}


def like_of(tx, params):
    params = jax.tree.map(jnp.asarray, params)
    return {"params": params, "opt_state": tx.init(params)}


@every_setting
@both_widths
@pytest.mark.parametrize("which", ["torch", "timm", "stable_baselines3"])
def test_torch_there_and_back(which, setting, dtype, tmp_path, capsys):
    needed(which, "torch", "orbax")
    import torch

    make, _ = makers()[which]
    options = {"lr": RATE, **SETTINGS[setting]}
    params, grads = problem(dtype)
    there, ours, back = tmp_path / "there.pt", tmp_path / "ours", tmp_path / "back.pt"
    told = ["--dialect", which] if which == "stable_baselines3" else []
    with their_own_world():
        expected = Torch(make, options, params).steps(grads)
        first = Torch(make, options, params)
        first.steps(grads[:K])
        content = {"model": first.params, "optimizer": first.optimizer.state_dict(), "epoch": 3}
        content["model"] = {name: p.detach() for name, p in content["model"].items()}
        torch.save(content, there)
        found = run(capsys, "inspect", there, "--json", *told)
        record = run(capsys, "convert", there, "--to", ours, "--json", *told)
        tx = transformation(record)
        assert found["calls"] == [record["call"]] and found["steps"] == K
        tree = go_on(tx, read(ours, like_of(tx, params)), grads[K : 2 * K])
        save(tmp_path / "later", tree)
        run(capsys, "convert", tmp_path / "later", "--to", back, "--like", there, *told)
        saved = torch.load(back, weights_only=True)
        assert saved["epoch"] == 3
        last = Torch(make, options, {n: x.numpy() for n, x in saved["model"].items()})
        last.optimizer.load_state_dict(saved["optimizer"])
        got = last.steps(grads[2 * K :])
        assert float(last.optimizer.state_dict()["state"][0]["step"]) == 3 * K
    assert_close(got, expected, dtype)


SHAPES = {"dense/kernel": {"shape": [4, 3], "dtype": "float64"}, "dense/bias": {"shape": [3]}}
TO_FLAX = ["--rename", "weight=dense.weight", "--rename", "bias=dense.bias"]


@both_formats
def test_torch_into_a_flax_tree_and_back(to, tmp_path, capsys):
    needed("torch", "orbax")
    import torch

    options = {"lr": RATE, "momentum": 0.9, "eps": 1e-4}
    params, grads = problem(np.float64)
    shapes, there, ours, back = (
        tmp_path / name for name in ("shapes.json", "there.pth", to, "back.pth")
    )
    shapes.write_text(json.dumps(SHAPES | {"dense/bias": {"shape": [3], "dtype": "float64"}}))

    def flax(named):
        return {"dense": {"kernel": named["weight"].T, "bias": named["bias"]}}

    with their_own_world():
        expected = Torch(torch.optim.RMSprop, options, params).steps(grads)
        first = Torch(torch.optim.RMSprop, options, params)
        p = first.steps(grads[:K])
        torch.save({"state_dict": {n: torch.tensor(x) for n, x in p.items()},
                    "optim": first.optimizer.state_dict()}, there)  # fmt: skip
        record = run(capsys, "convert", there, "--to", ours, "--target", shapes, "--json", *TO_FLAX)
        tx = transformation(record)
        tree = read(ours, like_of(tx, flax(p)))
        np.testing.assert_array_equal(tree["params"]["dense"]["kernel"], p["weight"].T)
        tree = go_on(tx, tree, [flax(g) for g in grads[K : 2 * K]])
        later = tmp_path / f"later-{to}"
        save(later, tree)
        run(capsys, "convert", later, "--to", back, "--like", there, *TO_FLAX)
        saved = torch.load(back, weights_only=True)
        last = Torch(
            torch.optim.RMSprop, options, {n: x.numpy() for n, x in saved["state_dict"].items()}
        )
        last.optimizer.load_state_dict(saved["optim"])
        got = last.steps(grads[2 * K :])
    assert_close(got, expected, np.float64)


def test_groups_with_and_without_decay_and_a_frozen_layer(tmp_path, capsys):
    """What most image models have: no decay for biases; and a first layer that is not trained."""
    needed("torch", "orbax")
    import torch

    def made():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
        ).double()
        model[0].requires_grad_(False)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [(n, p) for n, p in named if p.ndim > 1], "weight_decay": 0.1},
            {"params": [(n, p) for n, p in named if p.ndim == 1], "weight_decay": 0.0},
        ]
        return model, torch.optim.RMSprop(groups, lr=0.01, momentum=0.9)

    def gradients(model, seed):
        rng = np.random.default_rng(seed)
        return {n: rng.normal(size=p.shape) for n, p in model.named_parameters() if p.requires_grad}

    def steps(model, optimizer, start):
        for t in range(start, start + K):
            for n, g in gradients(model, t).items():
                model.get_parameter(n).grad = torch.tensor(g)
            optimizer.step()

    whole = made()
    steps(*whole, 0), steps(*whole, K), steps(*whole, 2 * K)
    model, optimizer = made()
    steps(model, optimizer, 0)
    there, ours, later, back = (tmp_path / n for n in ("a.pt", "ours", "later", "b.pt"))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, there)
    found = run(capsys, "inspect", there, "--json")
    assert found["calls"] == [
        "dialects.torch(lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0.1, momentum=0.9)",
        "dialects.torch(lr=0.01, alpha=0.99, eps=1e-08, momentum=0.9)",
    ]
    assert {x["name"]: x["group"] for x in found["parameters"]}["1.bias"] == 1
    shapes = tmp_path / "shapes.json"
    tree = {"0/kernel": [4, 4], "0/bias": [4], "1/scale": [4], "1/bias": [4],
            "2/kernel": [4, 2], "2/bias": [2]}  # fmt: skip
    entries = {f"params/{n}": {"shape": s, "dtype": "float64"} for n, s in tree.items()}
    entries |= {f"batch_stats/1/{n}": {"shape": [4], "dtype": "float64"} for n in ("mean", "var")}
    shapes.write_text(json.dumps(entries))
    record = run(capsys, "convert", there, "--to", ours, "--target", shapes, "--json")
    labels = record["labels"]
    assert labels["0/kernel"] == "frozen" and labels["2/kernel"] == "0" and labels["2/bias"] == "1"

    with jax.enable_x64(True):
        params = {}
        for name, shape in tree.items():
            module, kind = name.split("/")
            params.setdefault(module, {})[kind] = jnp.zeros(shape)
        txs = {
            str(i): eval(g["call"], {"dialects": dialects}) for i, g in enumerate(record["groups"])
        }
        txs["frozen"] = optax.set_to_zero()
        of = jax.tree_util.tree_map_with_path(
            lambda at, _: labels[jax.tree_util.keystr(at, simple=True, separator="/")], params
        )
        tx = optax.partition(txs, of)
        statistics = {"1": {"mean": jnp.zeros(4), "var": jnp.zeros(4)}}
        trees = read(ours, like_of(tx, params) | {"batch_stats": statistics})
        np.testing.assert_array_equal(trees["batch_stats"]["1"]["var"], np.ones(4))

        def flax(named):
            out = jax.tree.map(jnp.zeros_like, params)
            for n, g in named.items():
                module, kind = n.split(".")
                kind = {"weight": "scale" if g.ndim == 1 else "kernel"}.get(kind, kind)
                out[module][kind] = jnp.asarray(g.T)
            return out

        tree = go_on(tx, trees, [flax(gradients(model, t)) for t in range(K, 2 * K)])
        save(later, tree | {"batch_stats": jax.tree.map(lambda x: x + 2, statistics)})
    run(capsys, "convert", later, "--to", back, "--like", there)
    model, optimizer = made()
    saved = torch.load(back, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    np.testing.assert_array_equal(model[1].running_var, 2 * np.ones(4))
    steps(model, optimizer, 2 * K)
    for n, p in model.named_parameters():
        np.testing.assert_allclose(
            p.detach().numpy(), whole[0].get_parameter(n).detach().numpy(), atol=1e-12, rtol=0
        )


def test_tied_weights_and_positions_without_names(tmp_path, capsys):
    needed("torch", "orbax")
    import torch

    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Linear(3, 3, bias=False)
            self.two = torch.nn.Linear(3, 2)
            self.again = self.one

        def forward(self, x):
            return self.two(self.again(torch.tanh(self.one(x))))

    model = Tied()
    optimizer = torch.optim.RMSprop(model.parameters(), momentum=0.5)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    there, ours, back = tmp_path / "a.pt", tmp_path / "ours.npz", tmp_path / "b.pt"
    torch.save({"net": model.state_dict(), "opt": optimizer.state_dict()}, there)
    record = run(capsys, "convert", there, "--to", ours, "--json")
    assert record["groups"][0]["parameters"] == ["one.weight", "two.weight", "two.bias"]
    with np.load(ours) as file:
        changed = {k: x + 1 if k.startswith("params") else x for k, x in file.items()}
    np.savez(ours, **changed)
    run(capsys, "convert", ours, "--to", back, "--like", there)
    saved = torch.load(back, weights_only=True)["net"]
    for name in ("one.weight", "again.weight"):
        np.testing.assert_array_equal(saved[name], model.one.weight.detach() + 1)
    # With one of two groups in another order nothing tells the names.
    groups = [{"params": [model.two.weight]}, {"params": [model.one.weight, model.two.bias]}]
    other = torch.optim.RMSprop(groups, momentum=0.5)
    model(torch.ones(2, 3)).sum().backward()
    other.step()
    torch.save({"net": model.state_dict(), "opt": other.state_dict()}, there)
    run(capsys, "convert", there, "--to", tmp_path / "no", status=2)
    names = ["two.weight", "one.weight", "two.bias"]
    run(capsys, "convert", there, "--to", ours, "--force", "--names", *names)
    with np.load(ours) as file:
        expected = other.state[model.two.weight]["square_avg"]
        np.testing.assert_array_equal(file["opt_state/0/nu/two.weight"], expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@both_formats
def test_half_precision_weights_keep_their_dtype(dtype, to, tmp_path, capsys):
    needed("torch", "orbax")
    import torch

    model = torch.nn.Linear(4, 3, dtype=getattr(torch, dtype))
    optimizer = torch.optim.RMSprop(model.named_parameters(), momentum=0.9)
    model(torch.ones(2, 4, dtype=getattr(torch, dtype))).sum().backward()
    optimizer.step()
    there, ours, back = tmp_path / "a.pt", tmp_path / to, tmp_path / "b.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, there)
    run(capsys, "convert", there, "--to", ours)
    found = run(capsys, "inspect", ours, "--json")
    assert {x["dtype"] for x in found["parameters"]} == {dtype}
    run(capsys, "convert", ours, "--to", back, "--like", there)
    saved, old = (torch.load(x, weights_only=True) for x in (back, there))
    for name, x in old["model"].items():
        assert saved["model"][name].dtype == x.dtype and torch.equal(saved["model"][name], x)
    for i, entry in old["optimizer"]["state"].items():
        for key, x in entry.items():
            assert torch.equal(saved["optimizer"]["state"][i][key].to(x.dtype), x)


def a2c(tmp_path):
    """An agent and its archive: a real one where its environment's package is there."""
    import torch

    path = tmp_path / "agent.zip"
    if importlib.util.find_spec("gymnasium") is not None:
        from stable_baselines3 import A2C
        from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

        kwargs = {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"eps": 1e-5}}
        agent = A2C("MlpPolicy", "CartPole-v1", policy_kwargs=kwargs, seed=0, device="cpu")
        agent.learn(100)
        agent.save(path)
        return agent.policy, agent.policy.optimizer, path
    torch.manual_seed(0)
    policy = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    optimizer = stable_baselines3_optimizer()(policy.parameters(), lr=7e-4, alpha=0.99, eps=1e-5)
    torch_steps(policy, optimizer, 100)
    kwargs = {":type:": "<class 'dict'>", ":serialized:": "gASVAA==",
              "optimizer_class": "<class '...rmsprop_tf_like.RMSpropTFLike'>"}  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_kwargs": kwargs, "learning_rate": 7e-4}))
        for name, content in (
            ("policy.pth", policy.state_dict()),
            ("policy.optimizer.pth", optimizer.state_dict()),
        ):
            with archive.open(name, "w") as file:
                torch.save(content, file)
    return policy, optimizer, path


def torch_steps(module, optimizer, start):
    import torch

    for t in range(start, start + K):
        rng = np.random.default_rng(t)
        for p in module.parameters():
            p.grad = torch.tensor(rng.normal(size=p.shape), dtype=p.dtype)
        optimizer.step()
    return {n: p.detach().numpy().copy() for n, p in module.named_parameters()}


def test_an_agent_of_stable_baselines3_there_and_back(tmp_path, capsys):
    needed("torch", "stable_baselines3", "orbax")
    import torch

    policy, optimizer, there = a2c(tmp_path)
    shapes = {n: tuple(p.shape) for n, p in policy.named_parameters()}
    start = {n: p.detach().numpy().copy() for n, p in policy.named_parameters()}
    torch_steps(policy, optimizer, 0)
    expected = torch_steps(policy, optimizer, K)

    ours, later, back = (tmp_path / n for n in ("ours", "later", "back.zip"))
    record = run(capsys, "convert", there, "--to", ours, "--json")
    assert record["call"] == "dialects.stable_baselines3(lr=0.0007, alpha=0.99, eps=1e-05)"
    assert "Stable-Baselines3 2.9.2" in record["truth_table"]
    tx = transformation(record)
    grads = []
    for t in range(K):
        rng = np.random.default_rng(t)
        grads.append({n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()})
    save(later, go_on(tx, read(ours, like_of(tx, start)), grads))
    run(capsys, "convert", later, "--to", back, "--like", there)
    with zipfile.ZipFile(back) as archive, zipfile.ZipFile(there) as old:
        assert archive.namelist() == old.namelist()
        assert archive.read("data") == old.read("data")
        saved = {}
        for name in ("policy.pth", "policy.optimizer.pth"):
            with archive.open(name) as file:
                saved[name] = torch.load(file, weights_only=True)
    if hasattr(policy, "action_net"):
        from stable_baselines3 import A2C

        agent = A2C.load(back, device="cpu")
        assert type(agent.policy.optimizer).__name__ == "RMSpropTFLike"
        policy, optimizer = agent.policy, agent.policy.optimizer
    else:
        policy.load_state_dict(saved["policy.pth"])
        optimizer.load_state_dict(saved["policy.optimizer.pth"])
    assert_close(torch_steps(policy, optimizer, K), expected, np.float32)


def keras_model(module, make):
    model = module.Sequential(
        [
            module.layers.Input((3,)),
            module.layers.Dense(4, name="one"),
            module.layers.BatchNormalization(name="norm"),
            module.layers.Dense(2, name="two"),
        ],
        name="net",
    )
    model.compile(make())
    return model


def keras_gradients(start, shapes):
    for t in range(start, start + K):
        rng = np.random.default_rng(t)
        yield [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def keras_steps(model, start):
    import tensorflow as tf

    shapes = [tuple(v.shape) for v in model.trainable_variables]
    for g in keras_gradients(start, shapes):
        # A variable of another backend is no TensorFlow variable.
        arrays = [tf.constant(x) if "tf_keras" in type(model).__module__ else x for x in g]
        model.optimizer.apply_gradients(zip(arrays, model.trainable_variables, strict=True))
    return [np.asarray(v) for v in model.trainable_variables]


KERAS_OPTIONS = {
    "plain": {},
    "centered": {"centered": True, "epsilon": 1e-4},
    "all": {"momentum": 0.9, "centered": True, "epsilon": 1e-4},
}


@pytest.mark.parametrize("options", KERAS_OPTIONS)
@pytest.mark.parametrize(
    ["which", "suffix"],
    [
        ("keras", ".keras"),
        ("keras", ".weights.h5"),
        ("keras", ".h5"),
        ("tf_keras", ".keras"),
        ("tf_keras", ".h5"),
        ("legacy", ".h5"),
    ],
)
def test_keras_there_and_back(which, suffix, options, tmp_path, capsys):
    needed("keras", "tf_keras", "tensorflow", "h5py", "orbax")
    import keras
    import tf_keras

    module = keras if which == "keras" else tf_keras
    optimizers = module.optimizers.legacy if which == "legacy" else module.optimizers
    chosen = {"learning_rate": 0.01, **KERAS_OPTIONS[options]}

    def made():
        module.utils.set_random_seed(0)
        return keras_model(module, lambda: optimizers.RMSprop(**chosen))

    whole = made()
    keras_steps(whole, 0), keras_steps(whole, K)
    expected = keras_steps(whole, 2 * K)

    model = made()
    keras_steps(model, 0)
    there, ours, later, back = (
        tmp_path / n for n in (f"there{suffix}", "ours", "later", f"back{suffix}")
    )
    weights_only = suffix == ".weights.h5"
    model.save_weights(there) if weights_only else model.save(there)
    told = []
    if weights_only:
        names = {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-7, "centered": False} | chosen
        told = [f"--set={name}={value}" for name, value in names.items()]
    found = run(capsys, "inspect", there, "--json", *told)
    assert found["steps"] == K and found["unknown"] == []
    nu = {x["name"]: x["nu"] for x in found["parameters"]}
    assert sum(x is not None for x in nu.values()) == 6
    record = run(capsys, "convert", there, "--to", ours, "--json", *told)
    assert record["call"].startswith(f"dialects.keras{'2' if which == 'legacy' else ''}(")
    tx = transformation(record)
    names = record["groups"][0]["parameters"]
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    weights = [np.asarray(v) for v in model.trainable_variables]
    order = [next(i for i, v in enumerate(weights) if nu_matches(ours, n, v)) for n in names]
    assert sorted(order) == list(range(6))
    params = dict(zip(names, [weights[i] for i in order], strict=True))
    grads = [
        {n: g[i] for n, i in zip(names, order, strict=True)} for g in keras_gradients(K, shapes)
    ]
    save(later, go_on(tx, read(ours, like_of(tx, params) | others(ours)), grads))
    run(capsys, "convert", later, "--to", back, "--like", there, *told)

    last = made()
    keras_steps(last, 0)  # so that the optimizer has its variables
    if weights_only:
        last.load_weights(back)
    elif which == "keras" and suffix == ".h5":
        # Keras 3 does not know the model's variables in an optimizer that it reads from HDF5.
        import h5py

        last.set_weights(keras.models.load_model(back, compile=False).get_weights())
        with h5py.File(back) as file:
            (slots,) = file["optimizer_weights"].values()
            for variable in last.optimizer.variables:
                variable.assign(slots[variable.path.rpartition("/")[2]][()])
    else:
        last = module.models.load_model(back)
    got = keras_steps(last, 2 * K)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3 * K * 2 * np.finfo(np.float32).eps, rtol=0)


def nu_matches(path, name, value):
    from orbax.checkpoint import v1 as ocp

    x = ocp.load(path.absolute())["params"][name]
    return x.shape == value.shape and bool((x == value).all())


def others(path):
    from orbax.checkpoint import v1 as ocp

    return {k: x for k, x in ocp.load(path.absolute()).items() if k == "other"}


@pytest.mark.parametrize("which", ["tf_keras", "legacy"])
@pytest.mark.parametrize("options", KERAS_OPTIONS)
def test_a_checkpoint_of_tensorflow_2_goes_on(which, options, tmp_path, capsys):
    needed("tf_keras", "tensorflow", "orbax")
    import tensorflow as tf
    import tf_keras

    optimizers = tf_keras.optimizers.legacy if which == "legacy" else tf_keras.optimizers
    chosen = {"learning_rate": 0.01, "rho": 0.75, **KERAS_OPTIONS[options]}
    tf_keras.utils.set_random_seed(0)
    model = keras_model(tf_keras, lambda: optimizers.RMSprop(**chosen))
    keras_steps(model, 0)
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(tmp_path / "ckpt"))
    expected = keras_steps(model, K)
    names = {"rho": 0.75, "momentum": 0.0, "epsilon": 1e-7} | chosen
    told = [f"--set={name}={value}" for name, value in names.items()]
    ours = tmp_path / "ours"
    run(capsys, "convert", tmp_path / "ckpt", "--to", ours, status=2)
    record = run(capsys, "convert", tmp_path / "ckpt", "--to", ours, "--json", *told)
    tx, paths = (
        transformation(record),
        [v.name.removesuffix(":0") for v in model.trainable_variables],
    )
    assert {*record["groups"][0]["parameters"]} == {*paths}
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    params = {n: np.zeros(s, np.float32) for n, s in zip(paths, shapes, strict=True)}
    grads = [dict(zip(paths, g, strict=True)) for g in keras_gradients(K, shapes)]
    tree = go_on(tx, read(ours, like_of(tx, params) | others(ours)), grads)
    for name, value in zip(paths, expected, strict=True):
        np.testing.assert_allclose(tree["params"][name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("centered", [False, True])
def test_a_checkpoint_of_tensorflow_1_goes_on(centered, tmp_path, capsys):
    needed("tensorflow", "orbax")
    import tensorflow as tf

    v1 = tf.compat.v1
    rng = np.random.default_rng(0)
    values = {"layer/w": rng.normal(size=(3, 2)), "layer/b": rng.normal(size=2)}
    grads = [{n: rng.normal(size=x.shape) for n, x in values.items()} for _ in range(2 * K)]
    with tf.Graph().as_default():
        found = {n: v1.get_variable(n, initializer=x) for n, x in values.items()}
        feeds = {n: v1.placeholder(tf.float64, x.shape) for n, x in values.items()}
        optimizer = v1.train.RMSPropOptimizer(
            0.5, decay=0.75, momentum=0.5, epsilon=2.0, centered=centered
        )
        pairs = [(feeds[n], found[n]) for n in values]
        step = optimizer.apply_gradients(pairs, v1.train.get_or_create_global_step())
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for t, g in enumerate(grads):
                session.run(step, {feeds[n]: g[n] for n in values})
                if t == K - 1:
                    path = v1.train.Saver().save(session, str(tmp_path / "model"), K)
            expected = session.run(found)
    (tmp_path / "alone").mkdir()
    told = ["learning_rate=0.5", "decay=0.75", "momentum=0.5", "epsilon=2.0"]
    ours = tmp_path / "ours"
    record = run(capsys, "convert", path, "--to", ours, "--json", *(f"--set={x}" for x in told))
    assert record["truth_table"] == ["TensorFlow 1 (2.21's compat.v1)"]
    assert [*record["source"]["sha256"]] == [f"model-{K}.index", f"model-{K}.data-00000-of-00001"]
    tx = transformation(record)
    with jax.enable_x64(True):
        tree = go_on(tx, read(ours, like_of(tx, values)), grads[K:])
    assert_close(tree["params"], expected, np.float64)
    found = run(capsys, "inspect", f"{path}.index", "--json")
    assert found["unknown"] == ["decay", "epsilon", "learning_rate", "momentum"]
    assert {x["name"] for x in found["parameters"]} == {*values}


def test_a_damaged_checkpoint_of_tensorflow_is_one_line(tmp_path):
    needed("tensorflow")
    for name in ("a.index", "a.data-00000-of-00001"):
        (tmp_path / name).write_bytes(b"x" * 99)
    command = [sys.executable, "-m", "optax_rmsprop", "inspect", str(tmp_path / "a")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1


def test_a_file_of_torch_with_a_wrong_checksum_is_refused(tmp_path, capsys):
    needed("torch")
    import torch

    path, numbers = tmp_path / "a.pt", np.arange(1000, dtype=np.float32)
    torch.save({"w": torch.from_numpy(numbers)}, path)
    run(capsys, "inspect", path)
    whole = path.read_bytes()
    at = whole.index(numbers.tobytes()) + 2000
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    for command in (["inspect", path], ["convert", path, "--to", tmp_path / "out"]):
        assert main([*map(str, command)]) == 2
        error = capsys.readouterr().err
        assert "data/0 cannot be read" in error and "CRC" in error
    assert not (tmp_path / "out").exists()


def test_without_torch_a_file_of_torch_is_refused_in_a_line(tmp_path):
    needed("torch")
    import torch

    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('no', name='torch')")
    path = [str(tmp_path), str(pathlib.Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-m", "optax_rmsprop", "inspect", str(tmp_path / "a.pt")]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.count("\n") == 1 and "needs torch, which is not installed" in found.stderr


class Evil:
    """A pickle that would write a file where it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def saved_with(make, **options):
    def write(folder):
        import torch

        torch.save(make(torch, folder), folder / "a.pt", **options)
        return folder / "a.pt"

    return write


def hostile_agent(folder):
    import torch

    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("data", "{}")
        for name, content in (
            ("policy.pth", {"w": torch.ones(2)}),
            ("policy.optimizer.pth", Evil(folder / "pwned")),
        ):
            with archive.open(name, "w") as file:
                torch.save(content, file)
    return folder / "a.zip"


def bomb_in_an_agent(folder):
    """An archive in an archive, of which the outer one is within the limit."""
    path = saved_with(lambda torch, d: {"w": torch.zeros(2**25)})(folder)
    policy = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(policy, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    path.unlink()
    with zipfile.ZipFile(folder / "a.zip", "w") as agent:
        agent.writestr("data", "{}")
        agent.writestr("policy.pth", policy.getvalue())
    return folder / "a.zip"


def one_list_in_many_places(torch, folder):
    found = [1]
    for _ in range(4):
        found = [found] * 5000
    return {"x": found}


def cut_in_half(folder):
    path = saved_with(lambda torch, _: {"w": torch.ones(1000)})(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def program(folder):
    import torch

    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), folder / "a.pt")
    return folder / "a.pt"


def optimizer_of(entry, **group):
    return lambda torch, _: {
        "state": {0: entry(torch)},
        "param_groups": [{"lr": 0.1, "alpha": 0.9, "eps": 1e-8, "params": [0], **group}],
    }


HOSTILE = {
    "code": saved_with(lambda torch, d: Evil(d / "pwned")),
    "code beside weights": saved_with(
        lambda torch, d: {"model": {"w": torch.ones(2)}, "args": Evil(d / "pwned")}
    ),
    "code in the old format": saved_with(
        lambda torch, d: {"w": Evil(d / "pwned")}, _use_new_zipfile_serialization=False
    ),
    "a whole model": saved_with(lambda torch, d: torch.nn.Linear(2, 2)),
    "code in an agent's optimizer": hostile_agent,
    "cut off": cut_in_half,
    "a program": program,
    "more than it stores": saved_with(lambda torch, d: {"w": torch.ones(1).expand(10**9, 10**6)}),
    "a second moment that is more than it stores": saved_with(
        optimizer_of(lambda torch: {"step": 1, "square_avg": torch.ones(1).expand(10**9, 10**6)})
    ),
    "no dense tensor": saved_with(lambda torch, d: {"w": torch.eye(3).to_sparse()}),
    "an abstract tensor": saved_with(lambda torch, d: {"w": torch.ones(3, device="meta")}),
    "a rate that is a text": saved_with(
        optimizer_of(lambda torch: {"step": 1, "square_avg": torch.ones(1)}, lr="1e-3")
    ),
    "groups that are none": saved_with(lambda torch, d: {"state": {}, "param_groups": []}),
    "groups of other things": saved_with(lambda torch, d: {"state": 1, "param_groups": [3]}),
    "a parameter in two groups": saved_with(
        lambda torch, d: {"state": {}, "param_groups": [{"params": [0, 0]}]}
    ),
    "a bomb in an agent": bomb_in_an_agent,
    "one list in many places": saved_with(one_list_in_many_places),
    "half a step": saved_with(
        optimizer_of(lambda torch: {"step": 2.5, "square_avg": torch.ones(1)})
    ),
    "no step": saved_with(
        optimizer_of(lambda torch: {"step": torch.tensor(np.nan), "square_avg": torch.ones(1)})
    ),
    "plain values": saved_with(lambda torch, d: {"epoch": 3}),
    "a list": saved_with(lambda torch, d: [1, 2]),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_file_of_torch_is_refused_and_nothing_is_written(hostile, tmp_path, capsys):
    needed("torch", "orbax")
    path = HOSTILE[hostile](tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    for arguments in (
        ["inspect", path, "--json"],
        ["convert", path, "--to", tmp_path / "out"],
        ["convert", path, "--to", tmp_path / "out.npz"],
    ):
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and str(path) in err
        if "code" in hostile:
            assert "nothing in it was executed" in err
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_six_settings_may_be_of_two_rules(tmp_path, capsys):
    """Old files of PyTorch have the groups that Stable-Baselines3's class has."""
    needed("torch", "orbax")
    import torch

    old = {"lr": 0.1, "momentum": 0, "alpha": 0.9, "eps": 1e-8, "centered": False,
           "weight_decay": 0, "params": [0], "param_names": ["w"]}  # fmt: skip

    def written(nu):
        entry = {"step": 2, "square_avg": torch.tensor(nu)}
        torch.save({"state": {0: entry}, "param_groups": [old]}, tmp_path / "a.pt")
        return tmp_path / "a.pt"

    torchs = "dialects.torch(lr=0.1, alpha=0.9, eps=1e-08)"
    both = ["dialects.stable_baselines3(lr=0.1, alpha=0.9, eps=1e-08)", torchs]
    # After two steps an average that began at 1 is 0.81 at least.
    assert run(capsys, "inspect", written([0.5, 2.0]), "--json")["calls"] == [torchs]
    path = written([float(np.float32(0.9) * np.float32(0.9)), 2.0])
    assert run(capsys, "inspect", path, "--json")["calls"] == both
    capsys.readouterr()
    assert main(["convert", str(path), "--to", str(tmp_path / "x")]) == 2
    assert "give --dialect stable_baselines3 or torch" in capsys.readouterr().err
    record = run(capsys, "convert", path, "--to", tmp_path / "x", "--dialect", "pfrl", "--json")
    assert record["call"] == torchs.replace("torch", "pfrl")
    assert record["truth_table"] == ["pfrl 0.4.0"]


def test_an_optimizer_alone_takes_the_weights_of_another_file(tmp_path, capsys):
    needed("torch", "orbax", "safetensors")
    import torch
    from safetensors.torch import save_file

    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.RMSprop(model.parameters(), momentum=0.9)
    torch_steps(model, optimizer, 0)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    beside = ["--weights", tmp_path / "model.safetensors"]
    command = ["convert", tmp_path / "optimizer.pt", *beside, "--to", tmp_path / "ours"]
    run(capsys, *command, status=2)  # The order of the weights is not the model's.
    beside += ["--names", "weight", "bias"]
    record = run(capsys, *command, *beside[2:], "--json")
    params = {n: p.detach().numpy() for n, p in model.named_parameters()}
    tree = read(tmp_path / "ours", like_of(transformation(record), params))
    np.testing.assert_array_equal(tree["params"]["weight"], params["weight"])
    expected = optimizer.state[model.bias]["square_avg"]
    np.testing.assert_array_equal(optax.tree.get(tree["opt_state"], "nu")["bias"], expected)
    # Back into the file of the optimizer alone, with a record beside it.
    back = tmp_path / "back.pt"
    like = ["--like", tmp_path / "optimizer.pt"]
    run(capsys, "convert", tmp_path / "ours", "--to", back, *like, *beside)
    saved, old = (torch.load(tmp_path / n, weights_only=True) for n in ("back.pt", "optimizer.pt"))
    assert saved["param_groups"] == old["param_groups"]
    for i, entry in old["state"].items():
        assert all(torch.equal(saved["state"][i][key], x) for key, x in entry.items())
    found = run(capsys, "inspect", back, "--json")
    assert found["provenance"]["call"] == record["call"]
    torch.save({"other": torch.ones(2)}, back)
    found = run(capsys, "inspect", back, "--json")
    assert found["provenance"] is None and "another file" in found["notes"][0]


@pytest.mark.parametrize("kind", ["lightning", "timm", "nested"])
def test_what_trainers_write(kind, tmp_path, capsys):
    needed("torch", "orbax")
    import torch

    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.RMSprop(model.parameters(), momentum=0.9)
    torch_steps(model, optimizer, 0)
    weights, state = model.state_dict(), optimizer.state_dict()
    averaged = {name: x + 1 for name, x in weights.items()}
    content = {
        "lightning": {"state_dict": weights, "optimizer_states": [state], "lr_schedulers": []},
        "timm": {"state_dict": weights, "state_dict_ema": averaged, "optimizer": state,
                 "args": argparse.Namespace(opt="rmsprop")},
        "nested": {"trainer": {"net": weights, "opt": state}, "epoch": 3},
    }[kind]  # fmt: skip
    there, ours, back = tmp_path / "epoch=3.ckpt", tmp_path / "ours", tmp_path / "b.ckpt"
    torch.save(content, there)
    run(capsys, "convert", there, "--to", ours)
    params = {n: p.detach().numpy() for n, p in model.named_parameters()}
    tx = dialects.torch(lr=0.01, momentum=0.9)
    tree = read(ours, like_of(tx, params))
    for name, x in params.items():
        np.testing.assert_array_equal(tree["params"][name], x)
    changed = tree | {"params": jax.tree.map(lambda x: 2 * x, tree["params"])}
    save(tmp_path / "later", changed)
    run(capsys, "convert", tmp_path / "later", "--to", back, "--like", there)
    with torch.serialization.safe_globals([argparse.Namespace]):
        saved = torch.load(back, weights_only=True)
    assert saved.keys() == content.keys() and type(saved) is type(content)
    if kind == "timm":
        assert saved["args"] == content["args"]
        assert torch.equal(saved["state_dict_ema"]["weight"], averaged["weight"])
        found = run(capsys, "inspect", there, "--model", "state_dict_ema", "--json")
        assert found["steps"] == K
    else:
        new = saved["state_dict"] if kind == "lightning" else saved["trainer"]["net"]
        assert torch.equal(new["weight"], 2 * weights["weight"])


def test_what_programs_keep_beside_the_weights(tmp_path, capsys):
    """Scores and random states of NumPy, paths: they are not made, and not written back."""
    needed("torch", "orbax")
    import torch

    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.RMSprop(layer.parameters(), lr=RATE)
    torch_steps(layer, optimizer, 0)
    content = {"model": layer.state_dict(), "optimizer": optimizer.state_dict()}
    args = argparse.Namespace(folder=pathlib.Path("x"), lr=RATE)
    more = {"best": np.float64(0.5), "rng": np.random.get_state(), "args": args}
    for name, x in more.items():
        path, ours = tmp_path / f"{name}.pt", tmp_path / f"{name}.npz"
        torch.save(content | {name: x}, path)
        assert run(capsys, "inspect", path, "--json")["steps"] == K
        run(capsys, "convert", path, "--to", ours)
        with np.load(ours) as file:
            np.testing.assert_array_equal(file["params/weight"], layer.weight.detach().numpy())
        assert (
            main(["convert", str(ours), "--to", str(tmp_path / "b.pt"), "--like", str(path)]) == 2
        )
        assert "not carried" in capsys.readouterr().err and not (tmp_path / "b.pt").exists()


def test_masks_conjugates_and_names_of_any_kind(tmp_path, capsys):
    needed("torch", "orbax")
    import torch

    weights = {
        "mask": torch.tensor([True, False]),
        "w": torch.tensor([1 + 2j]).conj(),
        "\x1b[31m/..": torch.ones(2)[::2],
        "": torch.tensor(3.0),
    }
    torch.save(weights, tmp_path / "a.pt")
    for to in ("x", "x.npz"):
        run(capsys, "convert", tmp_path / "a.pt", "--to", tmp_path / to)
        back = tmp_path / f"{to}.pt"
        run(capsys, "convert", tmp_path / to, "--to", back, "--like", tmp_path / "a.pt")
        found = torch.load(back, weights_only=True)
        assert found.keys() == weights.keys()
        assert all(
            found[n].dtype == x.dtype and torch.equal(found[n], x) for n, x in weights.items()
        )
    before = sorted(tmp_path.iterdir())
    for name, to in (("a\0b", "y.npz"), ("a\udcff", "y"), ("a\udcff", "y.npz")):
        torch.save({name: torch.ones(2)}, tmp_path / "a.pt")
        arguments = ["convert", tmp_path / "a.pt", "--to", tmp_path / to]
        assert main([*map(str, arguments)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_complex_parameter_and_one_without_a_gradient(tmp_path, capsys):
    needed("torch", "orbax")
    import torch

    p = torch.nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
    q = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.RMSprop([("p", p), ("q", q)], momentum=0.9)
    p.grad = torch.tensor([0.5 - 1j, 2 + 2j])
    optimizer.step()
    content = {"model": {"p": p.detach(), "q": q.detach()}, "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "a.pt")
    found = run(capsys, "inspect", tmp_path / "a.pt", "--json")
    assert [row["nu"] is None for row in found["parameters"]] == [False, True]
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "a.pt"), "--to", str(tmp_path / "x")]) == 2
    assert "--missing-ok keeps a new state" in capsys.readouterr().err
    record = run(
        capsys, "convert", tmp_path / "a.pt", "--to", tmp_path / "x.npz", "--missing-ok", "--json"
    )
    like = {"p": np.zeros(2, np.complex64), "q": np.zeros(2, np.float32)}
    tree = read(tmp_path / "x.npz", like_of(transformation(record), like))
    nu = optax.tree.get(tree["opt_state"], "nu")
    expected = optimizer.state[p]["square_avg"]
    np.testing.assert_array_equal(nu["p"], np.stack([expected.real, expected.imag], -1))
    np.testing.assert_array_equal(nu["q"], np.zeros(2))
    run(capsys, "convert", tmp_path / "x.npz", "--to", tmp_path / "b.pt", "--like",
        tmp_path / "a.pt", "--json")  # fmt: skip
    saved = torch.load(tmp_path / "b.pt", weights_only=True)
    assert torch.equal(saved["optimizer"]["state"][0]["square_avg"], expected)
    assert torch.equal(saved["model"]["p"], p.detach())
