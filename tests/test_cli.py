"""The commands: what they say, what they write, and what they refuse."""

import functools
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_rmsprop import cli, dialects, recording
from optax_rmsprop.cli import _calls as calls
from optax_rmsprop.cli import _guard as guard
from optax_rmsprop.cli import _inspect as inspect
from optax_rmsprop.cli import _ours as ours
from optax_rmsprop.cli import _saved as saved
from tools.truth import ROWS

h5py = pytest.importorskip("h5py")
safetensors = pytest.importorskip("safetensors.numpy")
pytestmark = pytest.mark.api

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = {
    "name": "rm_sprop",
    "learning_rate": 0.01,
    "rho": 0.9,
    "momentum": 0.5,
    "epsilon": 1e-7,
    "centered": False,
    "weight_decay": None,
    "use_ema": False,
}
NAMES = ["net/one/kernel", "net/one/bias", "net/two/kernel"]


def values(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


WEIGHTS = {
    n: values(i, s) for i, (n, s) in enumerate(zip(NAMES, [(3, 4), (4,), (4, 2)], strict=True))
}
NU = {n: values(i + 9, x.shape) ** 2 for i, (n, x) in enumerate(WEIGHTS.items())}
NU[NAMES[1]][:2] = 0
STEPS = {n: values(i + 18, x.shape) for i, (n, x) in enumerate(WEIGHTS.items())}


def optimizer_config(**changes):
    return {"class_name": "RMSprop", "config": CONFIG | changes}


def keras_h5(path, nu=NU, **changes):
    """What Keras 3 writes for `model.save("model.h5")`."""
    with h5py.File(path, "w") as file:
        training = {"optimizer_config": optimizer_config(**changes)}
        file.attrs["training_config"] = json.dumps(training)
        layers = file.create_group("model_weights")
        layers.attrs["layer_names"] = [b"one", b"two"]
        for layer in ("one", "two"):
            names = [n for n in NAMES if f"/{layer}/" in n]
            group = layers.create_group(layer)
            group.attrs["weight_names"] = [n.encode() for n in names]
            for name in names:
                group[name] = WEIGHTS[name]
        slots = {"rm_sprop/iteration": np.int64(7), "rm_sprop/learning_rate": np.float32(0.01)}
        flat = {n: n.replace("/", "_") for n in NAMES}
        slots |= {f"rm_sprop/{flat[n]}_velocity": nu[n] for n in NAMES}
        slots |= {f"rm_sprop/{flat[n]}_momentum": STEPS[n] for n in NAMES}
        optimizer = file.create_group("optimizer_weights")
        optimizer.attrs["weight_names"] = [n.encode() for n in slots]
        for name, x in slots.items():
            optimizer[name] = x
    return path


def layer_config(name, cls="Dense"):
    return {"class_name": cls, "config": {"name": name, "trainable": True}}


SLOTS = {
    "average": lambda i, shape: values(130 + i, shape),
    "sum": lambda i, shape: np.zeros(shape, np.float32),
    "half sum": lambda i, shape: values(170 + i, shape),
    "velocity": lambda i, shape: values(50 + i, shape) ** 2,
    "step": lambda i, shape: values(90 + i, shape),
    "mean": lambda i, shape: np.sin(values(130 + i, shape)) * np.abs(values(50 + i, shape)),
}


def keras_archive(path, layers, config=True, slots=("velocity", "step"), **changes):
    """What Keras 3 writes for `model.save("model.keras")`, of layers as (group, class, shapes)."""
    buffer = io.BytesIO()
    shapes = [shape for *_, own in layers for shape in own]
    with h5py.File(buffer, "w") as file:
        at = 0
        for group, name, _, own in layers:
            where = file.create_group(f"layers/{group}/vars")
            where.attrs["name"] = name
            for i, shape in enumerate(own):
                where[str(i)] = values(at, shape)
                at += 1
        arrays = [np.int64(7), np.float32(0.01)]
        arrays += [SLOTS[kind](i, s) for kind in slots for i, s in enumerate(shapes)]
        where = file.create_group("optimizer/vars")
        where.attrs["name"] = "rm_sprop"
        for i, x in enumerate(arrays):
            where[str(i)] = x
    told = {"config": {"layers": [layer_config(n, c) for _, n, c, _ in layers]}} if config else {}
    told["compile_config"] = {"optimizer": optimizer_config(**changes)}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", json.dumps(told))
        archive.writestr("model.weights.h5", buffer.getvalue())
    return path


def run(capsys, *arguments, status=0):
    """A command; what it printed, as JSON where that was asked for, or its error."""
    capsys.readouterr()
    code = cli.main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert code == status, err
    if status == 2:
        assert out == "" and err.count("\n") == 1 and err.startswith("error: "), (out, err)
        return err
    return json.loads(out) if "--json" in arguments else out


def read(path, like):
    """What a user does with a converted checkpoint."""
    if path.suffix != ".npz":
        from orbax.checkpoint import v1 as ocp

        return ocp.load(path.absolute(), like)
    with np.load(path) as file:
        name = lambda at: jax.tree_util.keystr(at, simple=True, separator="/")  # noqa: E731
        return jax.tree_util.tree_map_with_path(lambda at, x: jnp.asarray(file[name(at)]), like)


def expected_call(record):
    return eval(record["call"], {"dialects": dialects})


CALL = "dialects.keras(learning_rate=0.01, rho=0.9, momentum=0.5, epsilon=1e-07)"


def test_inspect_names_the_rule_and_shows_the_second_moments(tmp_path, capsys):
    path = keras_h5(tmp_path / "model.h5")
    found = run(capsys, "inspect", path, "--json")
    assert found["calls"] == [CALL] and found["unknown"] == []
    assert found["optimizer"] == "keras.optimizers.RMSprop" and found["steps"] == 7
    assert found["settings"]["epsilon"] == 1e-7 and found["file"] == "model.h5"
    rows = {row["name"]: row for row in found["parameters"]}
    assert [*rows] == NAMES
    for name, row in rows.items():
        assert row["shape"] == [*WEIGHTS[name].shape] and row["dtype"] == "float32"
        np.testing.assert_allclose(row["nu"], np.quantile(NU[name], [0, 0.25, 0.5, 0.75, 1]))
        assert row["dead"] == (2 if name == NAMES[1] else 0) and row["not_finite"] == 0
    text = run(capsys, "inspect", path)
    for words in (CALL, "7", "net/two/kernel", "4×2", f"{NU[NAMES[2]].max():.3g}", "Keras 3.15"):
        assert words in text


def test_a_run_that_is_not_finite_is_shown(tmp_path, capsys):
    nu = {n: x.copy() for n, x in NU.items()}
    nu[NAMES[0]][0] = [np.nan, np.inf, 1, 2]
    nu[NAMES[1]][:] = np.nan
    found = run(capsys, "inspect", keras_h5(tmp_path / "model.h5", nu), "--json")
    rows = {row["name"]: row for row in found["parameters"]}
    assert [rows[n]["not_finite"] for n in NAMES] == [2, 4, 0]
    assert rows[NAMES[1]]["nu"] is None and rows[NAMES[0]]["nu"][4] == nu[NAMES[0]][0:, 1:][
        np.isfinite(nu[NAMES[0]][0:, 1:])
    ].max().clip(2)
    error = run(capsys, "convert", tmp_path / "model.h5", "--to", tmp_path / "x", status=2)
    assert "not finite" in error and NAMES[0] in error
    assert os.listdir(tmp_path) == ["model.h5"]


@pytest.mark.parametrize("to", ["ours", "ours.npz"])
def test_convert_and_back(to, tmp_path, capsys):
    there, path, back = keras_h5(tmp_path / "a.h5"), tmp_path / to, tmp_path / "b.h5"
    record = run(capsys, "convert", there, "--to", path, "--json")
    assert record["call"] == CALL and set(record["labels"].values()) == {"0"}
    params = {n: jnp.asarray(x) for n, x in WEIGHTS.items()}
    tx = expected_call(record)
    tree = read(path, {"params": params, "opt_state": tx.init(params)})
    state = tree["opt_state"]
    for name in NAMES:
        np.testing.assert_array_equal(tree["params"][name], WEIGHTS[name])
        np.testing.assert_array_equal(optax.tree.get(state, "nu")[name], NU[name])
        np.testing.assert_array_equal(optax.tree.get(state, "trace")[name], -STEPS[name])
    assert int(optax.tree.get(state, "count")) == 7
    # What was converted says where it is from.
    found = run(capsys, "inspect", path, "--json")
    assert found["calls"] == [CALL] and found["steps"] == 7 and found["provenance"] is not None
    kept = {k: x for k, x in found["provenance"].items() if k != "dtypes"}
    assert kept == record
    (digest,) = guard.digests({"a.h5": there}).values()
    assert record["source"]["sha256"] == {"a.h5": digest}
    assert record["versions"]["jax"] == jax.__version__
    before = {row["name"]: row for row in run(capsys, "inspect", there, "--json")["parameters"]}
    assert {row["name"]: row for row in found["parameters"]} == before
    # A run that went on goes back, by the other framework's names.
    _, state = tx.update(params, state, params)
    trees = {"params": jax.tree.map(lambda x: x * 2, params), "opt_state": state}
    ours.write(later := tmp_path / f"later-{to}", trees, record)
    run(capsys, "convert", later, "--to", back, "--like", there)
    with h5py.File(back) as new, h5py.File(there) as old:
        assert new.attrs["training_config"] == old.attrs["training_config"]
        assert new["optimizer_weights/rm_sprop/iteration"][()] == 8
        for name in NAMES:
            layer = name.split("/")[1]
            np.testing.assert_array_equal(new[f"model_weights/{layer}/{name}"], 2 * WEIGHTS[name])
            slot = f"optimizer_weights/rm_sprop/{name.replace('/', '_')}"
            nu = optax.tree.get(state, "nu")[name]
            np.testing.assert_array_equal(new[f"{slot}_velocity"], nu)
            trace = optax.tree.get(state, "trace")[name]
            np.testing.assert_array_equal(new[f"{slot}_momentum"], -trace)


SHAPES = {
    "params/Dense_0/kernel": {"shape": [3, 4], "dtype": "float32"},
    "params/Dense_0/bias": {"shape": [4]},
    "params/Dense_1/kernel": {"shape": [4, 2], "dtype": "bfloat16"},
}
RENAME = ["--rename", "net/one=Dense_0", "--rename", "net/two=Dense_1"]


def shape_file(path, **changes):
    path.write_text(json.dumps(SHAPES | changes))
    return path


@pytest.mark.parametrize("to", ["ours", "ours.npz"])
@pytest.mark.parametrize("target", ["shapes", "orbax", "npz"])
def test_a_target_tree_has_its_names_and_dtypes(to, target, tmp_path, capsys):
    there, path, back = keras_h5(tmp_path / "a.h5"), tmp_path / to, tmp_path / "b.h5"
    flax = {
        "Dense_0": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)},
        "Dense_1": {"kernel": jnp.zeros((4, 2), jnp.bfloat16)},
    }
    tree = shape_file(tmp_path / "shapes.json")
    if target != "shapes":
        tree = tmp_path / ("tree.npz" if target == "npz" else "tree")
        ours.write(tree, {"params": flax, "step": np.int32(3)}, {
            "version": 1, "groups": [], "labels": {},
        })  # fmt: skip
    record = run(capsys, "convert", there, "--to", path, "--target", tree, "--json", *RENAME)
    assert record["renamed"] == {
        n: n.replace("net/one", "Dense_0").replace("net/two", "Dense_1") for n in NAMES
    }
    if to == "ours":
        tx = expected_call(record)
        trees = read(path, {"params": flax, "opt_state": tx.init(flax)})
        kernel = trees["params"]["Dense_1"]["kernel"]
        assert kernel.dtype == jnp.bfloat16
        np.testing.assert_array_equal(kernel, WEIGHTS[NAMES[2]].astype(jnp.bfloat16))
        nu = optax.tree.get(trees["opt_state"], "nu")
        np.testing.assert_array_equal(nu["Dense_1"]["kernel"], NU[NAMES[2]])
    run(capsys, "convert", path, "--to", back, "--like", there, *RENAME)
    with h5py.File(back) as new:
        slot = f"optimizer_weights/rm_sprop/{NAMES[0].replace('/', '_')}_velocity"
        np.testing.assert_array_equal(new[slot], NU[NAMES[0]])
        np.testing.assert_array_equal(new[f"model_weights/one/{NAMES[0]}"], WEIGHTS[NAMES[0]])


def test_the_state_of_a_module_of_flax_is_a_target(tmp_path, capsys):
    """As `nnx.state` and `nnx.Optimizer` have it: every array in a variable."""
    nnx = pytest.importorskip("flax.nnx")
    from orbax.checkpoint import v1 as ocp

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one = nnx.Linear(3, 4, rngs=rngs)
            self.two = nnx.Linear(4, 2, use_bias=False, rngs=rngs)

    there, ours_, back = keras_h5(tmp_path / "a.h5"), tmp_path / "ours", tmp_path / "b.h5"
    with jax.numpy_dtype_promotion("standard"):
        net = Net(nnx.Rngs(0))
        ocp.save(tmp_path / "net", nnx.state(net, nnx.Param))
        record = run(
            capsys, "convert", there, "--to", ours_, "--target", tmp_path / "net", "--json",
            "--rename", "net=",
        )  # fmt: skip
        optimizer = nnx.Optimizer(net, expected_call(record), wrt=nnx.Param)
        state = nnx.state(net, nnx.Param)
        tree = ocp.load(ours_, {"params": state, "opt_state": optimizer.tx.init(state)})
        nnx.update(net, tree["params"])
        np.testing.assert_array_equal(net.one.kernel[...], WEIGHTS[NAMES[0]])
        nu = optax.tree.get(tree["opt_state"], "nu")
        np.testing.assert_array_equal(nu["two"]["kernel"][...], NU[NAMES[2]])
        later = {"params": nnx.state(net, nnx.Param), "opt_state": optimizer.opt_state}
        ocp.save(tmp_path / "later", later)
    run(capsys, "convert", tmp_path / "later", "--to", back, "--like", there, "--rename", "net=")
    with h5py.File(back) as new:
        np.testing.assert_array_equal(new[f"model_weights/one/{NAMES[0]}"], WEIGHTS[NAMES[0]])
        assert new["optimizer_weights/rm_sprop/iteration"][()] == 0


@pytest.mark.parametrize(
    ["changes", "more", "words"],
    [
        ({}, RENAME[:2], "missing"),
        ({"params/Dense_0/bias": {"shape": [5]}}, RENAME, "Dense_0/bias has shape (4,), and (5,)"),
        ({"params/Dense_2/bias": {"shape": [5]}}, RENAME, "missing ['Dense_2/bias']"),
        ({"params/Dense_0": {"shape": [5]}}, RENAME, "params/Dense_0"),
        ({"params/Dense_0/bias": {"shape": [-4]}}, RENAME, "must be"),
        ({"params/Dense_0/bias": {"shape": 4}}, RENAME, "must be"),
        ({"params/Dense_0/bias": [4]}, RENAME, "must be"),
        ({"params/Dense_0/bias": {"shape": [4], "dtype": "O8"}}, RENAME, "dtype"),
        ({}, [*RENAME, "--rename", "gone=x"], "gone"),
        ({}, [*RENAME, "--rename", "net"], "OLD=NEW"),
        ({}, [*RENAME, "--rename", "net/two/kernel=Dense_0/kernel"], "two parameters become"),
        ({}, [*RENAME, "--set", "learning_rate"], "NAME=VALUE"),
        ({}, [*RENAME, "--set", "learning_rate=open('x')"], "NAME=VALUE"),
        ({}, [*RENAME, "--set", "rate=1"], "dialects.keras has learning_rate"),
        ({}, [*RENAME, "--set", "rho=2"], "rho"),
        ({}, [*RENAME, "--names", "a", "b"], "names"),
    ],
)
def test_what_does_not_fit_is_told_by_name_and_writes_nothing(
    changes, more, words, tmp_path, capsys
):
    there, tree = keras_h5(tmp_path / "a.h5"), shape_file(tmp_path / "shapes.json", **changes)
    before = sorted(tmp_path.iterdir())
    error = run(capsys, "convert", there, "--to", tmp_path / "x", "--target", tree, *more, status=2)
    assert words in error
    assert sorted(tmp_path.iterdir()) == before


LAYERS = [
    ("conv2d", "first", "Conv2D", [(3, 3, 1, 4), (4,)]),
    ("batch_normalization", "norm", "BatchNormalization", [(4,), (4,)]),
    ("dense", "last", "Dense", [(4, 4), (4,)]),
]


def test_the_order_of_an_archive_is_that_of_its_config(tmp_path, capsys):
    found = run(capsys, "inspect", keras_archive(tmp_path / "a.keras", [LAYERS[0], LAYERS[2]]),
                "--json")  # fmt: skip
    rows = {row["name"]: row for row in found["parameters"]}
    shapes = [(3, 3, 1, 4), (4,), (4, 4), (4,)]
    names = ["first/kernel", "first/bias", "last/kernel", "last/bias"]
    assert found["groups"][0]["parameters"] == names
    for i, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        assert rows[name]["shape"] == [*shape]
        np.testing.assert_allclose(rows[name]["nu"][4], (values(50 + i, shape) ** 2).max())


def test_an_order_that_nothing_tells_is_asked_for(tmp_path, capsys):
    dense, other = (f"layers/{x}/{i}" for x in ("dense", "my_layer") for i in (0, 1)), None
    assert other is None and dense
    layers = [("dense", "dense", "Dense", [(4, 4), (4,)]), ("my", "my", "My", [(4, 4), (4,)])]
    path = keras_archive(tmp_path / "a.keras", layers, config=False)
    found = run(capsys, "inspect", path, "--json")
    assert found["groups"][0]["parameters"] == ["0", "1", "2", "3"]
    assert any("--names" in note for note in found["notes"])
    assert "--names" in run(capsys, "convert", path, "--to", tmp_path / "x", status=2)
    names = ["my/0", "my/1", "dense/kernel", "dense/bias"]
    run(capsys, "convert", path, "--to", tmp_path / "x.npz", "--names", *names)
    with np.load(tmp_path / "x.npz") as file:
        np.testing.assert_array_equal(file["opt_state/0/nu/my/0"], values(50, (4, 4)) ** 2)
        np.testing.assert_array_equal(file["params/dense/kernel"], values(0, (4, 4)))


def weights_of(archive):
    """What Keras 3 writes for `model.save_weights("model.weights.h5")`, of the same model."""
    path = archive.with_suffix(".weights.h5")
    path.write_bytes(zipfile.ZipFile(archive).read("model.weights.h5"))
    return path


def slots_of(path):
    data = zipfile.ZipFile(path).read("model.weights.h5") if path.suffix == ".keras" else None
    with h5py.File(io.BytesIO(data) if data else path) as file:
        group = file["optimizer/vars"]
        return [group[str(i)][()] for i in range(len(group))]


def with_slots(path, arrays):
    """Write these over those in the file."""
    members = {}
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO(members.get("model.weights.h5") or path.read_bytes())
    with h5py.File(buffer, "r+") as file:
        for i, x in arrays.items():
            file[f"optimizer/vars/{i}"][...] = x
    if not members:
        path.write_bytes(buffer.getvalue())
        return
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, buffer.getvalue() if name == "model.weights.h5" else data)


TWO_LAYERS = [LAYERS[0], LAYERS[2]]
BEFORE = {"average": {"use_ema": True}, "sum": {"gradient_accumulation_steps": 2}}
AFTER = {"step": {"momentum": 0.5}, "mean": {"centered": True}}


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
@pytest.mark.parametrize("after", [[], ["step"], ["mean"], ["step", "mean"]], ids="-".join)
@pytest.mark.parametrize("before", [["average"], ["sum"], ["average", "sum"]], ids="-".join)
def test_what_stands_before_the_second_moments_of_an_archive(
    before, after, suffix, tmp_path, capsys
):
    slots, told = [*before, "velocity", *after], {"momentum": 0.0, "centered": False}
    for kind in slots:
        told |= (BEFORE | AFTER).get(kind, {})
    path = keras_archive(tmp_path / "a.keras", TWO_LAYERS, slots=slots, **told)
    given = []
    if suffix == ".weights.h5":
        told |= {"rho": 0.9, "epsilon": 1e-7, "use_ema": "average" in before}
        path, given = weights_of(path), [f"--set={name}={x}" for name, x in told.items()]
    found = run(capsys, "inspect", path, "--json", *given)
    names = ["first/kernel", "first/bias", "last/kernel", "last/bias"]
    rows = {row["name"]: row for row in found["parameters"]}
    assert found["groups"][0]["parameters"] == names and found["unknown"] == []
    for i, name in enumerate(names):
        expected = SLOTS["velocity"](i, rows[name]["shape"]).max()
        np.testing.assert_allclose(rows[name]["nu"][4], expected)
    assert any("use_ema" in note for note in found["notes"]) == ("average" in before)
    assert any("--count" in note for note in found["notes"]) == ("sum" in before)
    # The way back writes into the same places, and leaves those of others.
    ours_, back = tmp_path / "ours.npz", tmp_path / f"back{suffix}"
    run(capsys, "convert", path, "--to", ours_, *given)
    old, first = slots_of(path), 2 + len(names) * len(before)
    with_slots(path, {i: 0 * x for i, x in enumerate(old) if i == 0 or i >= first})
    run(capsys, "convert", ours_, "--to", back, "--like", path, *given)
    for got, expected in zip(slots_of(back), old, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_unnamed_variables_are_told_apart_by_their_numbers(tmp_path, capsys):
    archive = keras_archive(tmp_path / "a.keras", TWO_LAYERS, slots=["sum", "velocity"])
    found = run(capsys, "inspect", weights_of(archive), "--json")
    nu = {row["name"]: row["nu"] for row in found["parameters"]}
    largest = SLOTS["velocity"](0, LAYERS[0][3][0]).max()
    np.testing.assert_allclose(nu["first/kernel"][4], largest)
    assert any("--count" in note for note in found["notes"])


def test_averages_and_half_an_accumulation_are_refused_by_their_settings(tmp_path, capsys):
    archive = keras_archive(tmp_path / "a.keras", TWO_LAYERS, slots=["average", "velocity"])
    error = run(capsys, "inspect", weights_of(archive), status=2)
    for words in ("(averaged weight, second moment)", ".keras", "--set use_ema=VALUE"):
        assert words in error
    run(capsys, "inspect", weights_of(archive), "--set=use_ema=True")
    half = keras_archive(
        tmp_path / "b.keras",
        TWO_LAYERS,
        slots=["half sum", "velocity", "step"],
        gradient_accumulation_steps=2,
    )
    error = run(capsys, "inspect", half, status=2)
    assert "'first/kernel' is in the midst of an accumulation" in error


def test_an_archive_whose_config_tells_is_not_judged_by_its_numbers(tmp_path, capsys):
    path = keras_archive(tmp_path / "a.keras", TWO_LAYERS, slots=["sum", "average", "velocity"])
    error = run(capsys, "inspect", path, status=2)  # three, where the config has two
    assert "expected the iteration" in error
    path = keras_archive(tmp_path / "b.keras", TWO_LAYERS, slots=["velocity", "velocity"])
    assert run(capsys, "inspect", path, "--json")["calls"] == [CALL]
    path = keras_archive(tmp_path / "c.keras", TWO_LAYERS, slots=["sum", "velocity"])
    assert run(capsys, "inspect", path, "--json")["calls"] == [CALL]


def test_a_layer_whose_name_starts_as_a_slot_of_keras_2_is_no_such_slot(tmp_path, capsys):
    path = keras_h5(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        slots = file["optimizer_weights"]
        names = [*slots.attrs["weight_names"]]
        new = [n.replace("/net_one", "/rms_one") for n in names]
        for old, name in zip(names, new, strict=True):
            if old != name:
                slots.move(old, name)
        slots.attrs["weight_names"] = new
    assert run(capsys, "inspect", path, "--json")["calls"] == [CALL]


def test_weights_of_safetensors(tmp_path, capsys):
    weights = {"a.weight": values(0, (2, 3)), "a.bias": values(1, 3).astype(jnp.bfloat16)}
    safetensors.save_file(weights, tmp_path / "w.safetensors")
    found = run(capsys, "inspect", tmp_path / "w.safetensors", "--json")
    assert found["optimizer"] is None and found["calls"] == [] and found["steps"] is None
    dtypes = {row["name"]: row["dtype"] for row in found["parameters"]}
    assert dtypes == {"a.weight": "float32", "a.bias": "bfloat16"}
    for to in ("x.npz", "x"):
        run(capsys, "convert", tmp_path / "w.safetensors", "--to", tmp_path / to)
        back = ours.read_npz(tmp_path / to) if to == "x.npz" else ours.read_orbax(tmp_path / to)
        for name, x in weights.items():
            assert back.weights[name].dtype == x.dtype
            np.testing.assert_array_equal(back.weights[name], x)


def test_an_image_that_is_flattened_and_statistics_go_into_one_tree(tmp_path, capsys):
    named = {
        "conv.weight": values(0, (4, 3, 2, 2)),
        "norm.weight": values(1, (4,)),
        "norm.bias": values(2, (4,)),
        "norm.running_mean": values(3, (4,)),
        "norm.running_var": values(4, (4,)),
        "norm.num_batches_tracked": np.array(7),
        "fc.weight": values(5, (5, 4 * 2 * 3)),
        "fc.mask": np.arange(6).reshape(2, 3) % 2 == 0,
    }
    source = tmp_path / "a.safetensors"
    safetensors.save_file(named, source)
    shapes = {"params/conv/kernel": [2, 2, 3, 4], "params/norm/scale": [4], "params/norm/bias": [4]}
    shapes |= {
        "params/fc/kernel": [24, 5],
        "batch_stats/norm/mean": [4],
        "batch_stats/norm/var": [4],
    }
    tree = tmp_path / "shapes.json"
    tree.write_text(json.dumps({path: {"shape": shape} for path, shape in shapes.items()}))
    told = ["--target", tree, "--flattened", "fc=4,2,3"]
    text = run(capsys, "convert", source, "--to", tmp_path / "x.npz", *told)
    assert "left out: fc.mask, norm.num_batches_tracked\n" in text
    run(capsys, "convert", source, "--to", tmp_path / "own.npz")
    with np.load(tmp_path / "x.npz") as found:
        assert {*found.files} == {*shapes, "provenance"}
        expected = named["fc.weight"].reshape(5, 4, 2, 3).transpose(2, 3, 1, 0).reshape(24, 5)
        np.testing.assert_array_equal(found["params/fc/kernel"], expected)
        np.testing.assert_array_equal(found["batch_stats/norm/var"], named["norm.running_var"])
    with np.load(tmp_path / "own.npz") as found:
        for name, x in named.items():
            assert found[f"params/{name}"].dtype == x.dtype
            np.testing.assert_array_equal(found[f"params/{name}"], x)


def test_the_name_of_the_file_to_write_may_be_any_that_ends_as_that_of_the_other(tmp_path, capsys):
    there = keras_h5(tmp_path / "epoch=3.ckpt")
    run(capsys, "convert", there, "--to", tmp_path / "x")
    run(capsys, "convert", tmp_path / "x", "--to", tmp_path / "back.ckpt", "--like", there)
    assert run(capsys, "inspect", tmp_path / "back.ckpt", "--json")["calls"] == [CALL]


def test_another_optimizer_is_named_and_not_converted(tmp_path, capsys):
    path = keras_h5(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        told = {"optimizer_config": {"class_name": "Adam", "config": {"learning_rate": 0.1}}}
        file.attrs["training_config"] = json.dumps(told)
    found = run(capsys, "inspect", path, "--json")
    assert found["optimizer"] == "Adam" and found["calls"] == []
    assert "Adam" in run(capsys, "convert", path, "--to", tmp_path / "x", status=2)


def test_a_schedule_is_named_and_its_rate_asked_for(tmp_path, capsys):
    schedule = {"class_name": "CosineDecay", "config": {"initial_learning_rate": 0.1}}
    path = keras_h5(tmp_path / "a.h5", learning_rate=schedule)
    found = run(capsys, "inspect", path, "--json")
    assert found["unknown"] == ["learning_rate"] and found["calls"][0].startswith(
        "dialects.keras(learning_rate=..., rho=0.9"
    )
    error = run(capsys, "convert", path, "--to", tmp_path / "x", status=2)
    assert "give --set learning_rate=VALUE" in error
    record = run(
        capsys, "convert", path, "--to", tmp_path / "x", "--json", "--set=learning_rate=0.5"
    )
    assert record["call"].startswith("dialects.keras(learning_rate=0.5, rho=0.9")


def test_nothing_is_overwritten_without_force(tmp_path, capsys):
    there = keras_h5(tmp_path / "a.h5")
    for to in (tmp_path / "x", tmp_path / "x.npz"):
        run(capsys, "convert", there, "--to", to)
        before = guard.digests({f.name: f for f in [to, *to.rglob("*")] if f.is_file()})
        assert "--force" in run(capsys, "convert", there, "--to", to, status=2)
        assert guard.digests({f.name: f for f in [to, *to.rglob("*")] if f.is_file()}) == before
        run(capsys, "convert", there, "--to", to, "--force")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    link = tmp_path / "link"
    link.symlink_to(mine)
    for to in (mine, link):
        run(capsys, "convert", there, "--to", to, "--force", status=2)
    assert (mine / "thesis.txt").read_text() == "years" and link.is_symlink()
    assert "no folder" in run(capsys, "convert", there, "--to", tmp_path / "no" / "x", status=2)
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "link", "mine", "x", "x.npz"]


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_failure_leaves_what_was_there(failure, force, tmp_path, capsys, monkeypatch):
    there, to = keras_h5(tmp_path / "a.h5"), tmp_path / "x.npz"
    if force:
        run(capsys, "convert", there, "--to", to)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}

    def fails(path, *_):
        path.write_text("half")
        raise failure

    monkeypatch.setattr(ours, "write", fails)
    code = cli.main(["convert", str(there), "--to", str(to), *force])
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert code == (130 if isinstance(failure, KeyboardInterrupt) else 2)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


class Evil:
    """A pickle that would write a file where it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def zipped(path, members):
    """An archive of members, each a name or a ZipInfo, and its data."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def keras_members(path):
    with zipfile.ZipFile(keras_archive(path, [LAYERS[0]])) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def info(name, mode=0o644):
    found = zipfile.ZipInfo(name)
    found.compress_type = zipfile.ZIP_DEFLATED
    found.external_attr = mode << 16
    return found


def with_member(name, data="x", mode=0o100644):
    def make(folder):
        members = keras_members(folder / "a.keras")
        return zipped(folder / "a.keras", [*members, (info(name, mode), data)])

    return make


def cut(make, suffix, keep=0.6):
    def made(folder):
        path = make(folder)
        data = path.read_bytes()
        (cut := folder / f"cut{suffix}").write_bytes(data[: int(len(data) * keep)])
        path.unlink()
        return cut

    return made


def changed_h5(change):
    def make(folder):
        path = keras_h5(folder / "a.h5")
        (folder / "secret.bin").write_bytes(b"\0" * 400)
        with h5py.File(path, "r+") as file:
            change(h5py, file, folder)
        return path

    return make


def external_link(h5, file, folder):
    del file["model_weights/one/net/one/bias"]
    with h5.File(folder / "secret.h5", "w") as secret:
        secret["x"] = WEIGHTS[NAMES[1]]
    file["model_weights/one/net/one/bias"] = h5.ExternalLink(str(folder / "secret.h5"), "/x")


def soft_link(h5, file, _):
    file["model_weights/one/again"] = h5.SoftLink("/optimizer_weights")


def external_data(_, file, folder):
    file.create_dataset("x", (100,), "f4", external=[(str(folder / "secret.bin"), 0, 400)])


def virtual_data(h5, file, folder):
    layout = h5.VirtualLayout((4,), "f4")
    layout[:] = h5.VirtualSource(str(folder / "secret.h5"), "x", shape=(4,))
    file.create_virtual_dataset("x", layout)


def enormous(_, file, __):
    file.create_dataset("x", (10**6, 10**6), "f4", chunks=(100, 100), compression="gzip")


def cycle(_, file, __):
    file["model_weights/one/loop"] = file["model_weights"]


def texts(h5, file, _):
    file.create_dataset("x", data=["a"], dtype=h5.string_dtype())


def npz_of(**arrays):
    def make(folder):
        np.savez(
            folder / "a.npz", **{k: f(folder) if callable(f) else f for k, f in arrays.items()}
        )
        return folder / "a.npz"

    return make


def npz_member(name, data):
    return lambda folder: zipped(folder / "a.npz", [(name, data)])


def npy(shape, data=b"", dtype="<f4"):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def record_of(**changes):
    plain = {"version": 1, "groups": [{"call": CALL, "parameters": NAMES}], "labels": {}}
    return npz_of(**{"params/w": np.ones(2), "provenance": np.array(json.dumps(plain | changes))})


def orbax(change):
    def make(folder):
        ours.write(folder / "a", {"params": {"w": np.ones(3)}}, {"version": 1})
        (folder / "a" / "provenance.json").unlink()
        change(folder / "a")
        return folder / "a"

    return make


def truncate_all(path):
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def link_out(path):
    (path / "more").symlink_to(path.parent)


def raw(name, data):
    def make(folder):
        data_ = data(folder) if callable(data) else data
        (folder / name).write_bytes(data_)
        return folder / name

    return make


def torch_archive(folder):
    return zipped(folder / "a.pt", [("a/data.pkl", pickle.dumps(Evil(folder / "pwned"))),
                                    ("a/version", "3")])  # fmt: skip


def agent(data=None, policy=None):
    def make(folder):
        evil = pickle.dumps(Evil(folder / "pwned"))
        text = json.dumps({"policy_kwargs": {":type:": "x", ":serialized:": evil.hex()}})
        members = [("data", text if data is None else data), ("policy.pth", policy or evil)]
        return zipped(folder / "a.zip", members)

    return make


def linked(folder):
    keras_h5(folder / "real.h5")
    (folder / "a.h5").symlink_to(folder / "real.h5")
    return folder / "a.h5"


def encrypted(folder):
    path = with_member("x")(folder)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    return path


def deceiving(folder):
    """A member that says it is short, and is long."""
    path = zipped(folder / "a.keras", [("config.json", "{}" + " " * 10**6)])
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = data.rindex(mark) + offset
        data[at : at + 4] = struct.pack("<I", 2)
    path.write_bytes(data)
    return path


HOSTILE = {
    "zip slip": with_member("../evil"),
    "zip slip, backslashes": with_member("..\\evil"),
    "zip slip, inside": with_member("a/../../evil"),
    "absolute member": with_member("/etc/evil"),
    "member on a drive": with_member("C:/evil"),
    "member that is a link": with_member("evil", "/etc/passwd", 0o120777),
    "encrypted": encrypted,
    "short by its own account": deceiving,
    "bomb": with_member("bomb", "\0" * 80_000_000),
    "archive without weights": lambda d: zipped(d / "a.keras", [("config.json", "{}")]),
    "config that is a list": lambda d: zipped(d / "a.keras", [("config.json", "[]")]),
    "config that is deep": lambda d: zipped(d / "a.keras", [("config.json", "[" * 10**5)]),
    "cut archive": cut(with_member("x"), ".keras"),
    "cut HDF5": cut(lambda d: keras_h5(d / "a.h5"), ".h5"),
    "HDF5 cut at its head": cut(lambda d: keras_h5(d / "a.h5"), ".h5", 0.01),
    "external link": changed_h5(external_link),
    "soft link": changed_h5(soft_link),
    "external data": changed_h5(external_data),
    "virtual data": changed_h5(virtual_data),
    "enormous array": changed_h5(enormous),
    "cycle": changed_h5(cycle),
    "array of texts": changed_h5(texts),
    "rate that is code": lambda d: keras_h5(d / "a.h5", learning_rate="__import__('os')"),
    "pickled array": npz_of(x=lambda d: np.array([Evil(d / "pwned")], dtype=object)),
    "npz that is cut": cut(npz_of(x=np.ones(1000)), ".npz"),
    "npz of other things": npz_member("x.pkl", b"x"),
    "npz with a wrong shape": npz_member("x.npy", npy((10**9, 10**9))),
    "npz with a negative shape": npz_member("x.npy", npy((-1, -4), b"1234" * 4)),
    "npz with a wrong header": npz_member("x.npy", npy("__import__('os')")),
    "npz of nothing": npz_member("x.npy", b""),
    "bomb in npz": lambda d: npz_member("x.npy", npy((20_000_000,), bytes(80_000_000)))(d),
    "record with code": record_of(
        groups=[{"call": "__import__('pathlib').Path('pwned').touch()", "parameters": []}]
    ),
    "record with a dialect's code": record_of(
        groups=[{"call": "dialects.torch(lr=__import__('os').getpid())", "parameters": []}]
    ),
    "record of another kind": record_of(groups=3),
    "record with wrong dtypes": record_of(dtypes=[1]),
    "record of another version": record_of(version=99),
    "Orbax with a link": orbax(link_out),
    "Orbax that is cut": orbax(truncate_all),
    "cut safetensors": cut(
        lambda d: (
            safetensors.save_file({"x": np.ones(100)}, d / "a.safetensors") or d / "a.safetensors"
        ),
        ".safetensors",
    ),
    "safetensors with a long head": raw("a.safetensors", struct.pack("<Q", 2**60) + b"{}"),
    "link to a file": linked,
    "pickle": raw("a.pt", lambda d: pickle.dumps(Evil(d / "pwned"))),
    "archive with a pickle": torch_archive,
    "agent with a pickle": agent(),
    "agent without data": lambda d: zipped(d / "a.zip", [("policy.pth", b"x")]),
    "agent whose data is no JSON": agent(data="\x80\x04."),
    "bomb in a file of torch": lambda d: zipped(d / "a.pt", [("a/data/0", bytes(80_000_000))]),
    "slip in an agent": lambda d: zipped(d / "a.zip", [("data", "{}"), ("../policy.pth", b"")]),
    "nothing": raw("a.pt", b""),
    "text": raw("a.h5", b"hello"),
    "text that is called npz": raw("a.npz", b"hello"),
    "empty folder": lambda d: (d / "a").mkdir() or d / "a",
    "missing": lambda d: d / "missing.pt",
}


def files(folder):
    return {
        str(f.relative_to(folder)): f.read_bytes() if f.is_file() else None
        for f in folder.rglob("*")
    }


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_file_is_refused_and_nothing_is_written(hostile, tmp_path, capsys):
    path = HOSTILE[hostile](tmp_path)
    before = files(tmp_path)
    for arguments in (
        ["inspect", path],
        ["inspect", path, "--json"],
        ["convert", path, "--to", tmp_path / "out"],
        ["convert", path, "--to", tmp_path / "out.npz", "--force"],
        ["convert", path, "--to", tmp_path / f"back{path.suffix}", "--like", path],
    ):
        error = run(capsys, *arguments, status=2)
        assert str(path) in error or "run in JAX" in error or "exist" in error, error
        assert len(error) < 1000 and error.rstrip("\n").isprintable()
    assert files(tmp_path) == before
    assert not (pathlib.Path.cwd() / "pwned").exists()


def within_each_other(count):
    nested = [0]
    for _ in range(count):
        nested = [nested, nested]
    return nested


def test_containers_that_never_end_are_refused():
    cycle = {}
    cycle["itself"] = [cycle]
    for x in (
        within_each_other(40),
        cycle,
        {"deep": functools.reduce(lambda x, _: (x,), range(99))},
    ):
        with pytest.raises(guard.Refused, match="within each other"):
            guard.check_nesting("a.pt", x)
    guard.check_nesting("a.pt", {"state": {0: {"step": 1}}, "groups": [within_each_other(10)] * 9})


@pytest.mark.parametrize("key", ["alpha", "step"])
def test_a_file_of_torch_whose_lists_never_end_is_refused(key, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.ones(2))
    saved = torch.optim.RMSprop([weight]).state_dict()
    saved["state"] = {0: {"step": torch.tensor(1.0), "square_avg": torch.ones(2)}}
    (saved["param_groups"][0] if key == "alpha" else saved["state"][0])[key] = within_each_other(40)
    torch.save(saved, tmp_path / "a.pt")
    assert "within each other" in run(capsys, "inspect", tmp_path / "a.pt", status=2)


def test_two_members_of_one_name_are_refused(tmp_path, capsys):
    members = keras_members(tmp_path / "a.keras")
    with pytest.warns(UserWarning, match="Duplicate name"):
        zipped(tmp_path / "a.keras", [*members, members[0]])
    assert "two members" in run(capsys, "inspect", tmp_path / "a.keras", status=2)


def test_the_limit_of_sizes_lets_fresh_accumulators_pass():
    guard.check_size("x", guard.HARMLESS, 1)
    guard.check_size("x", 10 * guard.HARMLESS, guard.HARMLESS)
    with pytest.raises(guard.Refused, match="bomb"):
        guard.check_size("x", guard.HARMLESS + 1, 1000)


@pytest.mark.parametrize("width", ["20", "500"])
def test_a_terminal_cuts_nothing(width, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    text = run(capsys, "inspect", keras_h5(tmp_path / "model.h5"))
    assert all(name in text for name in [*NAMES, "4×2", "float32", "dead"])
    assert "not finite" not in text and not any(line.endswith(" ") for line in text.splitlines())


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nb", "a\u202eb"])
def test_names_cannot_talk_to_the_terminal(name, tmp_path, capsys):
    weights = {name: values(0, 3)}
    safetensors.save_file(weights, tmp_path / "w.safetensors")
    out = run(capsys, "inspect", tmp_path / "w.safetensors")
    assert all(line.isprintable() for line in out.splitlines())
    found = run(capsys, "inspect", tmp_path / "w.safetensors", "--json")
    assert found["parameters"][0]["name"] == name


@pytest.mark.parametrize("dialect", calls.FRAMEWORKS)
def test_the_table_of_frameworks_is_true(dialect):
    framework = calls.FRAMEWORKS[dialect]
    rows = {row.framework: row for row in ROWS}
    for row in framework.rows:
        assert rows[row].call.startswith(f"dialects.{dialect}(")
    call = calls.Call(dialect, {framework.rate: 0.1, framework.decay: 0.5})
    state = call.made().init(jnp.zeros(1))
    assert float(optax.tree.get_all_with_path(state, "nu")[0][1][0]) == framework.start
    zero = call.made().update(jnp.zeros(1), state, jnp.zeros(1))[1]
    nu = float(optax.tree.get_all_with_path(zero, "nu")[0][1][0])
    assert nu == framework.start * 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr": 0.01, "alpha": 0.99, "eps": 1e-8},
        {"lr": 1e-3, "momentum": 0.9, "centered": True, "weight_decay": 1e-4},
        {"lr": 1, "momentum": 0, "weight_decay": None, "lr_in_momentum": False, "caution": True},
    ],
)
def test_a_call_is_read_as_it_was_written(arguments):
    call = calls.Call("timm", arguments)
    again = calls.Call.parsed(str(call))
    assert again.made() == call.made() == dialects.timm(**arguments)
    assert eval(str(call), {"dialects": dialects}) == call.made()


@pytest.mark.parametrize(
    "text",
    [
        "dialects.torch(lr=lambda c: 1)",
        "dialects.torch(**{'lr': 1})",
        "dialects.torch(1)",
        "dialects.multiply(factor=1)",
        "dialects.torch(lr='x')",
        "dialects.torch(lr=[1])",
        "dialects.torch.__globals__(lr=1)",
        "os.system(lr=1)",
        "dialects.torch(rate=1)",
        "dialects.torch(lr=1); x",
        "(" * 10_000,
        "",
    ],
)
def test_what_is_no_call_of_a_dialect_is_refused(text):
    with pytest.raises(guard.Refused):
        calls.Call.parsed(text)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("steps", [0, 1, 20, 1000, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_dead_coordinate_of_an_average_that_starts_at_one(decay, steps, dtype):
    nu = np.ones(3, dtype)
    for _ in range(steps):
        nu = (nu * dtype(decay)).astype(dtype)
        nu[1] += dtype(1 - decay) * dtype(1e-2)
    group = saved.Group(calls.Call("timm", {"lr": 0.1, "alpha": decay}), ["w"])
    alive = 1 if steps else 0
    assert inspect.dead_in(nu, group, steps) == 3 - alive
    unknown = saved.Group(calls.Call("tensorflow1", {"decay": ...}), ["w"])
    assert inspect.dead_in(nu, unknown, steps) is None
    zero = saved.Group(calls.Call("torch", {"lr": 0.1, "alpha": decay}), ["w"])
    assert inspect.dead_in(np.array([0, 1e-30, 0], dtype), zero, steps) == 2


def test_an_array_without_entries_goes_into_npz_and_not_into_orbax(tmp_path, capsys):
    weights = {"a": values(0, 3), "b": np.zeros((0, 4), np.float32)}
    safetensors.save_file(weights, tmp_path / "w.safetensors")
    error = run(capsys, "convert", tmp_path / "w.safetensors", "--to", tmp_path / "x", status=2)
    assert "params/b" in error and ".npz" in error
    run(capsys, "convert", tmp_path / "w.safetensors", "--to", tmp_path / "x.npz")
    assert ours.read_npz(tmp_path / "x.npz").weights["b"].shape == (0, 4)


def test_a_state_of_another_rule_is_refused(tmp_path, capsys):
    there = keras_h5(tmp_path / "a.h5")
    params = {n: jnp.asarray(x) for n, x in WEIGHTS.items()}
    state = optax.adam(1e-3).init(params)
    ours.write(tmp_path / "x", {"params": params, "opt_state": state}, {"version": 1, "groups": [],
                                                                       "labels": {}})  # fmt: skip
    error = run(
        capsys, "convert", tmp_path / "x", "--to", tmp_path / "b.h5", "--like", there, status=2
    )
    assert "no state of this call" in error


def test_a_state_within_a_chain_is_found(tmp_path, capsys):
    there, back = keras_h5(tmp_path / "a.h5"), tmp_path / "b.h5"
    params = {n: jnp.asarray(x) for n, x in WEIGHTS.items()}
    tx = optax.chain(optax.clip_by_global_norm(1.0), eval(CALL, {"dialects": dialects}))
    _, state = tx.update(params, tx.init(params), params)
    from orbax.checkpoint import v1 as ocp

    ocp.save(tmp_path / "x", {"params": params, "opt_state": state})
    run(capsys, "convert", tmp_path / "x", "--to", back, "--like", there)
    nu = optax.tree.get(state, "nu")[NAMES[2]]
    with h5py.File(back) as new:
        slot = f"optimizer_weights/rm_sprop/{NAMES[2].replace('/', '_')}_velocity"
        np.testing.assert_array_equal(new[slot], nu)
        assert new["optimizer_weights/rm_sprop/iteration"][()] == 1


@pytest.mark.parametrize(
    ["arguments", "words"],
    [
        ([], None),
        (["inspect"], None),
        (["nothing"], None),
        (["inspect", "x.pt", "--dialect", "adam"], None),
        (["convert", "a.h5"], None),
        (["convert", "a.h5", "--to", "b.keras"], "is no run in JAX"),
        (["convert", "x.npz", "--to", "b.h5"], "needs --like"),
        (["convert", "x.npz", "--to", "b"], "is of a run in JAX"),
        (["convert", "x.npz", "--to", "b.keras", "--like", "a.h5"], "must end as"),
        (["convert", "x.npz", "--to", "b.npz", "--like", "x.npz"], "of no other framework"),
        (["convert", "x.npz", "--to", "b.h5", "--like", "a.h5", "--target", "x.npz"], "--target"),
    ],
)
def test_wrong_use_is_told_with_status_2(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras_h5(tmp_path / "a.h5")
    run(capsys, "convert", "a.h5", "--to", "x.npz")
    before = sorted(tmp_path.iterdir())
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err
    assert words is None or words in err
    assert sorted(tmp_path.iterdir()) == before


def test_help_is_there(capsys):
    for arguments in ([], ["inspect"], ["convert"], ["identify"], ["compare"], ["bytes"]):
        assert cli.main([*arguments, "--help"]) == 0
        assert "usage: python -m optax_rmsprop" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["tyro", "rich"])
def test_a_missing_extra_is_told_in_a_line(module, tmp_path):
    (tmp_path / f"{module}.py").write_text(
        f"raise ModuleNotFoundError('no', name={module!r})", encoding="utf-8"
    )
    path = [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-m", "optax_rmsprop", "inspect", "x.h5"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 2 and found.stdout == ""
    assert found.stderr.startswith(f"error: {module} is not installed: pip install 'optax-rmsprop")
    assert found.stderr.endswith("'.[cli]' in a clone\n") and found.stderr.count("\n") == 1


def test_the_command_as_a_program(tmp_path):
    path = keras_h5(tmp_path / "ünd so.h5")
    pieces = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(pieces),
        "PYTHONIOENCODING": "ascii",
    }
    command = [sys.executable, "-m", "optax_rmsprop", "inspect", str(path)]
    ends = os.pipe()
    os.close(ends[0])  # a reader that has enough
    options = {"stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "env": environment}
    programs = [
        subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **options),
        subprocess.Popen([*command, "--json"], text=True, stdout=subprocess.PIPE, **options),
        subprocess.Popen([*command, "--json"], text=True, stdout=ends[1], **options),
    ]
    if os.name == "posix":
        closed = ["sh", "-c", 'exec "$0" "$@" >&-', *command]
        programs += [subprocess.Popen(closed, text=True, **options)]
    os.close(ends[1])
    found = [program.communicate() for program in programs]
    assert [err for _, err in found] == [""] * len(found)
    assert [p.returncode for p in programs] == [0, 0, 141, 0][: len(found)]
    assert "?nd so.h5" in found[0][0] and CALL in found[0][0] and "4?2" in found[0][0]
    assert json.loads(found[1][0])["file"] == "ünd so.h5"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A log, and modules in the place of those that read and explain it."""
    np.savez(tmp_path / "log.npz", x=np.ones(2))
    run_ = types.SimpleNamespace(
        params={"w": "before, after"}, grads={"w": "g"}, learning_rates=[0.5], steps=[0]
    )
    modules = {
        "recording": types.SimpleNamespace(Run=types.SimpleNamespace(load=lambda path: run_)),
        "probe": types.SimpleNamespace(identify_log=lambda *a: Report([*a])),
        "compare": types.SimpleNamespace(runs=lambda a, b, _: Difference(None if a is b else 3)),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"optax_rmsprop.{name}", module)
    return tmp_path / "log.npz"


class Report:
    def __init__(self, given):
        assert given == [{"w": "be"}, {"w": "g"}, [0.5]]
        self.calls = ["dialects.torch(lr=0.5)"]

    def __str__(self):
        return "it is dialects.torch [here]\n\x1b[31m"

    def as_dict(self):
        return {"calls": self.calls, "error": np.float32(np.nan)}


class Difference:
    def __init__(self, first):
        self.first = first

    def __str__(self):
        return f"first: {self.first}"

    def as_dict(self):
        return {"first": self.first}


def test_the_frame_of_identify(recorded, capsys, monkeypatch):
    assert "dialects.torch [here]\n\N{REPLACEMENT CHARACTER}[31m" in run(
        capsys, "identify", recorded
    )
    assert run(capsys, "identify", recorded, "--json") == {
        "calls": ["dialects.torch(lr=0.5)"], "error": None,
    }  # fmt: skip
    monkeypatch.setattr(Report, "__init__", lambda self, _: setattr(self, "calls", []))
    run(capsys, "identify", recorded, status=1)


def test_the_frame_of_compare(recorded, capsys, monkeypatch):
    assert "first: None" in run(capsys, "compare", recorded, recorded)
    modules = types.SimpleNamespace(runs=lambda a, b, _: Difference(3))
    monkeypatch.setitem(sys.modules, "optax_rmsprop.compare", modules)
    assert run(capsys, "compare", recorded, recorded, "--json", status=1) == {"first": 3}


def test_runs_whose_parameters_have_other_names_are_compared(tmp_path, capsys):
    params, grads = {"fc.weight": values(0, (4, 3)), "b": values(1, (4,))}, {}
    grads = {name: x[:3] for name, x in params.items()}
    theirs, ours = tmp_path / "theirs.npz", tmp_path / "ours.npz"
    recording.Run(params, grads, np.arange(3)).save(theirs)
    for run_ in (params, grads):
        run_["net/kernel"] = run_.pop("fc.weight")
    recording.Run(params, grads, np.arange(3)).save(ours)
    assert "fc.weight" in run(capsys, "compare", theirs, ours, status=2)
    names = ["--rename", "fc.weight=net/kernel"]
    assert run(capsys, "compare", theirs, ours, *names, "--json")["first"] is None
    assert "no parameter" in run(capsys, "compare", theirs, ours, "--rename", "fd=x", status=2)


@pytest.mark.parametrize("command", [["identify"], ["compare", "{}"]])
def test_a_hostile_log_is_refused(command, recorded, capsys, tmp_path):
    np.savez(tmp_path / "evil.npz", x=np.array([Evil(tmp_path / "pwned")], dtype=object))
    first, *rest = command
    arguments = [x.format(recorded) for x in rest]
    assert "pickles" in run(capsys, first, *arguments, tmp_path / "evil.npz", status=2)
    assert not (tmp_path / "pwned").exists()


def test_a_run_is_identified_from_its_first_step_on(tmp_path, capsys):
    rng = np.random.default_rng(0)
    tx, p, rows = dialects.torch(lr=0.01, alpha=0.9, eps=1e-3), rng.normal(size=6), []
    state, grads = tx.init(p), rng.normal(size=(24, 6))
    with jax.enable_x64(True):
        for g in grads:
            rows.append(p)
            updates, state = tx.update(g, state, p)
            p = p + np.asarray(updates)
    rows = np.array([*rows, p])
    late = recording.Run({"w": rows[10:]}, {"w": grads[10:]}, np.arange(10, 24))
    late.save(tmp_path / "late.npz")
    error = run(capsys, "identify", tmp_path / "late.npz", status=2)
    assert "must have the first step, 0" in error and "its first is 10" in error
    # The steps after a gap are not used.
    steps = np.array([*range(20), 22, 23])
    params = np.concatenate([rows[:21], rows[22:]])
    gap = recording.Run({"w": params}, {"w": grads[steps]}, steps)
    gap.save(tmp_path / "gap.npz")
    found = run(capsys, "identify", tmp_path / "gap.npz", "--json")
    assert found["calls"][0].startswith("dialects.torch(lr=0.01, alpha=0.9, eps=0.001")


def test_names_that_do_not_fit_a_target_are_told_with_the_flag(monkeypatch, capsys):
    def refused(_):
        raise ValueError("layout: missing ['fc.weight'], surplus ['0.weight']")

    monkeypatch.setattr("optax_rmsprop.cli._commands.run", refused)
    assert cli.main(["convert", "x.pt", "--to", "y"]) == 2
    assert "surplus ['0.weight']; --rename OLD=NEW gives" in capsys.readouterr().err
