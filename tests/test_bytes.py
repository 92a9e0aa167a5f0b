"""Where bytes go: what `bytes` counts of shapes is what arrays of these shapes hold."""

import functools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_rmsprop
from benchmarks import bytes as page
from optax_rmsprop import cli, sharding
from optax_rmsprop.cli import _bytes as counted
from optax_rmsprop.cli import _models as models

pytestmark = pytest.mark.api

ROOT = pathlib.Path(__file__).parents[1]

# As published: torchvision has ResNet-50's to the last, the others' are rounded.
PUBLISHED = {
    "llama-2-7b": (6.74e9, 0.005e9),
    "vit-h-14": (632e6, 0.5e6),
    "resnet-50": (25557032, 0),
}

# A leaf that stays in float32 by its name, one by its size, one that a row's length gives another
# format; and one that neither axis divides.
SHAPES = {
    "embed": (64, 128),
    "kernel": (24, 1024),
    "conv": (3, 3, 64, 16),
    "bias": (16,),
    "odd": (33, 129),
    "half": (128, 64),
}
# The same rule, applied by hand.
SPLIT = {
    (("devices", 1),): {name: P() for name in SHAPES},
    (("devices", 8),): {
        "embed": P("devices"),
        "kernel": P("devices"),
        "conv": P(None, None, "devices"),
        "bias": P("devices"),
        "odd": P(),
        "half": P("devices"),
    },
    (("x", 4), ("y", 2)): {
        "embed": P("x", "y"),
        "kernel": P("x", "y"),
        "conv": P(None, None, "x", "y"),
        "bias": P("x"),
        "odd": P(),
        "half": P("x", "y"),
    },
}


def abstract():
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16 if name == "half" else jnp.float32)
        for name, shape in SHAPES.items()
    }


@functools.cache
def account(axes):
    return counted.account("model", abstract(), dict(axes), [1])


def held(tree):
    """The bytes that the first device holds, by its own account."""
    return sum(
        x.addressable_shards[0].data.on_device_size_in_bytes() for x in jax.tree.leaves(tree)
    )


def run(capsys, *arguments, status=0):
    capsys.readouterr()
    code = cli.main(["bytes", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert code == status, err
    if status:
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err
    return json.loads(out) if "--json" in arguments else out


@pytest.mark.parametrize("name", models.MODELS)
def test_a_model_has_as_many_parameters_as_is_published(name):
    count, error = PUBLISHED[name]
    assert abs(sum(map(math.prod, models.MODELS[name]().values())) - count) <= error


@pytest.mark.parametrize("optimizer", counted.OPTIMIZERS)
@pytest.mark.parametrize("axes", SPLIT, ids=str)
def test_what_is_counted_is_what_arrays_hold(axes, optimizer, eight_devices):
    mesh, found = dict(axes), account(axes)
    real = jax.make_mesh(
        tuple(mesh.values()),
        tuple(mesh),
        axis_types=(AxisType.Auto,) * len(mesh),
        devices=jax.devices()[: math.prod(mesh.values())],
    )
    params = {
        name: jax.device_put(jnp.ones(x.shape, x.dtype), NamedSharding(real, SPLIT[axes][name]))
        for name, x in abstract().items()
    }
    grads = jax.jit(lambda p: jax.tree.map(lambda x: x + x, p))(params)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    tx = counted.OPTIMIZERS[optimizer]()
    state = jax.jit(tx.init, out_shardings=sharding.state_shardings(tx, wide))(wide)
    row = next(row for row in found.rows if row.optimizer == optimizer)
    assert (found.parameters, found.gradients) == (held(params), held(grads))
    assert row.state == held(state)
    assert row.total == held((params, grads, state))
    assert row.left == [10**9 - row.total]


def test_a_model_of_a_name(capsys):
    found = run(capsys, "llama-2-7b", "--devices", 8, "--params-dtype", "bfloat16", "--json")
    assert found["count"] == 6738415616 and found["mesh"] == {"devices": 8}
    assert found["parameters"] == found["gradients"] == 6738415616 * 2 // 8
    rows = {row["optimizer"]: row for row in found["rows"]}
    assert list(rows) == list(counted.OPTIMIZERS)
    # Two moments in float32, and a count on every device.
    adam = rows["optax.adam"]
    assert adam["state"] == 6738415616 + 4
    assert adam["left"] == [10**9 * gb - adam["total"] for gb in (16, 24, 80)]
    # All but the embedding in a byte, and an exponent a block of 128.
    assert rows["rmsprop, uint8()"]["of_a_parameter"] == pytest.approx(
        1 + 1 / 128 + (3 - 1 / 128) * 32000 * 4096 / 6738415616, abs=1e-5
    )


def test_what_is_printed(capsys):
    text = run(capsys, "vit-h-14", "--memory", 4, 80)
    for words in ("632,045,800 parameters", "devices=1", "not counted", "activations", "2.528 GB"):
        assert words in text
    (adam,) = (line.split() for line in text.splitlines() if line.startswith("optax.adam"))
    assert adam == ["optax.adam", "8.000", "5.056", "10.113", "too", "much", "69.887"]


@pytest.mark.parametrize("kind", ["shapes", "npz", "orbax"])
def test_a_model_of_a_file(kind, tmp_path, capsys):
    arrays = {"a": {"kernel": jnp.ones((64, 128)), "steps": jnp.zeros((3,), jnp.int32)}}
    if kind == "shapes":
        path = tmp_path / "shapes.json"
        entries = {
            "params/a/kernel": {"shape": [64, 128]},
            "params/a/steps": {"shape": [3], "dtype": "int32"},
        }
        path.write_text(json.dumps(entries), encoding="utf-8")
    elif kind == "npz":
        path = tmp_path / "a.npz"
        jnp.savez(path, **{f"params/a/{name}": x for name, x in arrays["a"].items()})
    else:
        ocp = pytest.importorskip("orbax.checkpoint").v1
        ocp.save(path := tmp_path / "a", {"params": arrays})
    found = run(capsys, path, "--json", "--mesh", "x=2,y=4")
    assert found["model"] == str(path) and found["count"] == 64 * 128 + 3
    # An integer is a parameter that no gradient reaches; 3 of them are on every device.
    assert found["parameters"] == 64 * 128 * 4 // 8 + 12
    assert found["gradients"] == 64 * 128 * 4 // 8
    half = run(capsys, path, "--json", "--params-dtype", "bfloat16")
    assert half["parameters"] == 64 * 128 * 2 + 12
    wide = run(capsys, path, "--json", "--params-dtype", "float64")
    rows = {row["optimizer"]: row["state"] for row in wide["rows"]}
    # The moment, the rate just used, two counts, and a False in the place of the integers.
    assert rows["rmsprop"] == 64 * 128 * 8 + 8 + 2 * 4 + 1


@pytest.mark.parametrize(
    ["arguments", "words"],
    [
        (["gpt-5"], "MODEL gpt-5 is none of llama-2-7b, vit-h-14, resnet-50"),
        (["resnet-50", "--devices", "0"], "--devices 0: expected"),
        (["resnet-50", "--devices", "2", "--mesh", "x=2"], "--devices 2: --mesh x=2"),
        (["resnet-50", "--mesh", "x"], "--mesh x: expected NAME=SIZE"),
        (["resnet-50", "--mesh", "x=0"], "--mesh x=0: expected NAME=SIZE"),
        (["resnet-50", "--mesh", "x=2,x=4"], "--mesh x=2,x=4: expected NAME=SIZE"),
        (["resnet-50", "--memory", "16", "-1"], "--memory -1: expected GB > 0"),
        (["resnet-50", "--memory", "nan"], "--memory nan: expected GB > 0"),
        (["empty.json"], "empty.json holds no parameters"),
        ([pathlib.Path(__file__).parent], "no checkpoint of Orbax"),
    ],
)
def test_wrong_use_is_told_by_name(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").write_text("{}", encoding="utf-8")
    assert words in run(capsys, *arguments, status=2)


def test_what_the_page_of_commands_shows_is_what_is_printed(capsys):
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    block = text.partition("```text\n$ python -m optax_rmsprop bytes ")[2].partition("```")[0]
    arguments, _, shown = block.partition("\n")
    assert shown == run(capsys, *arguments.split())


def test_the_bytes_that_the_page_of_memory_tells(capsys):
    found = run(capsys, "llama-2-7b", "--params-dtype", "bfloat16", "--json")
    totals = {row["optimizer"]: f"{row['total'] / 10**9:.1f}" for row in found["rows"]}
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    told = re.findall(
        r"([\d.]+) GB", text.partition("optax_rmsprop bytes`")[2].partition("\n\n")[0]
    )
    names = "optax.adam", "rmsprop", "rmsprop, uint8()", "rmsprop with momentum, uint8(), int8()"
    assert told == [totals[name] for name in names]


def test_moments_are_of_the_width_that_the_pages_tell():
    half = jax.ShapeDtypeStruct((64, 128), jnp.bfloat16)
    for make, dtype in ((optax.adam, jnp.bfloat16), (optax_rmsprop.rmsprop, jnp.float32)):
        assert optax.tree.get(jax.eval_shape(make(1e-3).init, half), "nu").dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_the_page_is_what_the_command_writes(name):
    text = (page.RESULTS / "bytes.md").read_text(encoding="utf-8")
    assert "\n".join(page.table(name)) in text, "python -m benchmarks.bytes"
