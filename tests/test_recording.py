"""Chosen steps are kept, the updates stay as they are, and a file is read or refused."""

import json
import pickle
import zipfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_rmsprop as ours
from optax_rmsprop import dialects
from optax_rmsprop.recording import RecordState, Run, record

pytestmark = pytest.mark.api

N = 8
CHOICES = {
    "three": (3, [0, 1, 2], [0, 1, 2, 3]),
    "all": (N, [*range(N)], [*range(N + 1)]),
    "later": (range(4, 6), [4, 5], [4, 5, 6]),
    "apart": ([1, 2, 5, 7], [1, 2, 5, 7], [1, 2, 3, 5, 6, 7, 8]),
    "more than there are": (20, [*range(N)], [*range(N + 1)]),
    "some to come": ([0, 3, 30], [0, 3], [0, 1, 3, 4]),
}
choices = pytest.mark.parametrize(["steps", "kept", "rows"], CHOICES.values(), ids=CHOICES)


def params():
    rng = np.random.default_rng(0)
    return {
        "layer": {"w": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)},
        "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
        "complex": jnp.asarray(rng.normal(size=2) + 1j, jnp.complex64),
    }


def gradients(n=N):
    rng = np.random.default_rng(1)
    draw = lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype)  # noqa: E731
    return [jax.tree.map(draw, params()) for _ in range(n)]


def step_of(tx):
    def step(p, state, g):
        updates, state = tx.update(g, state, p)
        return optax.apply_updates(p, updates), state

    return step


def follow(tx, jit=True):
    p = params()
    state, history = tx.init(p), [p]
    step = jax.jit(step_of(tx)) if jit else step_of(tx)
    for g in gradients():
        p, state = step(p, state, g)
        history.append(p)
    return p, state, history


def named(tree):
    wide = jax.tree.map(
        lambda x: np.asarray(x if x.dtype != jnp.bfloat16 else x.astype("f4")), tree
    )
    return {"layer/w": wide["layer"]["w"], "half": wide["half"], "complex": wide["complex"]}


def assert_is(run, history, kept, rows):
    np.testing.assert_array_equal(run.steps, kept)
    for path, x in run.params.items():
        np.testing.assert_array_equal(x, [named(history[i])[path] for i in rows])
    for path, x in run.grads.items():
        np.testing.assert_array_equal(x, [named(gradients()[i])[path] for i in kept])
    for i, row in zip(kept, run.rows, strict=True):
        np.testing.assert_array_equal(run.params["half"][row], named(history[i])["half"])
        np.testing.assert_array_equal(run.params["half"][row + 1], named(history[i + 1])["half"])


def halving(count):
    return jnp.exp2(-jnp.asarray(count, jnp.float32))


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@choices
def test_chosen_steps_are_kept_and_updates_stay_bit_equal(steps, kept, rows, jit):
    plain = dialects.torch(halving, momentum=0.9, weight_decay=0.1)
    tx = record(plain, steps)
    p, state, history = follow(tx, jit)
    chex.assert_trees_all_equal((p, state.inner_state), follow(plain, jit)[:2])
    run = Run.of(state, tx)
    assert_is(run, history, kept, rows)
    assert run.is_from_start == (kept == [*range(len(kept))])
    np.testing.assert_array_equal(run.learning_rates, np.float32(0.5) ** kept)
    assert run.settings["call"] == repr(plain) and run.settings["dtype/half"] == "bfloat16"


@choices
def test_in_a_scan_with_donated_buffers(steps, kept, rows):
    tx = record(ours.rmsprop(0.1, momentum=0.5), steps)
    step = step_of(tx)

    def all_of(p, state, grads):
        return jax.lax.scan(lambda carry, g: (step(*carry, g), None), (p, state), grads)[0]

    grads = jax.tree.map(lambda *x: jnp.stack(x), *gradients())
    p = params()
    _, state = jax.jit(all_of, donate_argnums=(0, 1))(p, tx.init(p), grads)
    _, _, history = follow(tx)
    run = Run.of(state)
    assert "call" not in run.settings
    np.testing.assert_array_equal(run.steps, kept)
    for path, x in run.params.items():
        expected = [named(history[i])[path] for i in rows]
        np.testing.assert_allclose(x, expected, rtol=0, atol=4e-3 if path == "half" else 1e-6)


def test_a_step_that_is_not_kept_writes_nothing_and_none_is_in_temporary_memory():
    tx = record(ours.rmsprop(0.1), 2)
    _, state, _ = follow(tx)
    _, after = jax.jit(tx.update)(params(), state, params())
    for field in ("kept_params", "kept_grads", "kept_rates"):
        chex.assert_trees_all_equal(getattr(after, field), getattr(state, field))
    assert int(after.record_count) == N + 1
    if jax.default_backend() == "cpu":
        p = jnp.ones((400, 100))
        tx = record(ours.rmsprop(0.1), 100)
        step = jax.jit(step_of(tx), donate_argnums=(0, 1)).lower(p, tx.init(p), p).compile()
        # A row each of what is written, and never the buffers.
        assert step.memory_analysis().temp_size_in_bytes < 3.1 * p.nbytes


@pytest.mark.device
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["Auto", "Explicit"])
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_what_is_kept_is_sharded_like_the_parameters(kind, jit, grid):
    mesh = jax.make_mesh(grid, ("x", "y"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        p = {"w": jax.device_put(np.ones((8, 4), np.float32), NamedSharding(mesh, P("x", "y")))}
        tx = record(ours.rmsprop(0.5, decay=0.75, eps=0.0), [0, 2])
        state = jax.jit(tx.init)(p) if jit else tx.init(p)
        step = jax.jit(step_of(tx))
        text = step.lower(p, state, p).compile().as_text()
        assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all"))
        q = p
        for _ in range(4):
            q, state = step(q, state, p)
        for tree in (state.kept_params, state.kept_grads):
            found, expected = tree["w"].sharding, NamedSharding(mesh, P(None, "x", "y"))
            assert found.is_equivalent_to(expected, 3)
        run = Run.of(state)
    assert run.params["w"].shape == (4, 8, 4) and (run.params["w"][:2, 0, 0] == [1, 0]).all()


def test_many_runs_at_once():
    tx = record(ours.rmsprop(0.1), [0, 2])
    ps = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params())
    states = jax.vmap(tx.init)(ps)
    for _ in range(3):
        ps, states = jax.vmap(step_of(tx))(ps, states, ps)
    second = Run.of(jax.tree.map(lambda x: x[1], states))
    assert second.params["layer/w"].shape == (4, 4, 3) and list(second.steps) == [0, 2]
    np.testing.assert_array_equal(second.params["layer/w"][0], 2 * params()["layer"]["w"])


def test_states_that_hold_a_record():
    tx = record(optax.chain(optax.clip(1.0), ours.rmsprop(0.1)), 2)
    w = {"w": jnp.ones(3)}
    state = TrainState.create(apply_fn=None, params=w, tx=tx)
    state = state.apply_gradients(grads=w)
    assert list(Run.of(state).steps) == [0]
    outer = optax.chain(optax.identity(), tx)
    assert list(Run.of(outer.update(w, outer.init(w), w)[1]).steps) == [0]
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = np.asarray(model.kernel[...])
    optimizer.update(model, nnx.grad(lambda model: model(jnp.ones((1, 2))).sum())(model))
    run = Run.of(optimizer.opt_state)
    assert set(run.params) == {"kernel", "bias"}
    np.testing.assert_array_equal(run.params["kernel"], [before, np.asarray(model.kernel[...])])


def test_a_gradient_wider_than_its_parameter_is_kept_whole():
    tx = record(optax.sgd(0.5), 1)
    p = {"w": jnp.ones(2, jnp.bfloat16)}
    g = {"w": jnp.full(2, 1.001, jnp.float32)}
    with jax.numpy_dtype_promotion("standard"):
        _, state = tx.update(g, tx.init(p), p)
    run = Run.of(state)
    np.testing.assert_array_equal(run.grads["w"][0], g["w"])
    assert run.learning_rates is None


def test_leaves_without_a_gradient():
    tx = record(ours.rmsprop(0.1), 2)
    p = {"w": jnp.ones(2), "n": jnp.arange(3), "frozen": jnp.ones(2), "no": None}
    g = {"w": jnp.ones(2), "n": np.zeros(3, jax.dtypes.float0), "frozen": None, "no": None}
    _, state = tx.update(g, tx.init(p), p)
    run = Run.of(state)
    assert set(run.params) == {"w", "frozen"} and (run.grads["frozen"] == 0).all()


def test_its_errors():
    tx = ours.rmsprop(0.1)
    for steps, error in [
        (0, ValueError), (-1, ValueError), ([], ValueError), ([1, 1], ValueError),
        ([2, 1], ValueError), ([-1, 0], ValueError), ([2**31], ValueError), (True, TypeError),
        (10**9, ValueError), (2**70, ValueError), (range(10**9), ValueError),
        (1.0, TypeError), ([0.5], TypeError), ("12", TypeError), (np.arange(3), TypeError),
    ]:  # fmt: skip
        with pytest.raises(error, match="record: steps must be"):
            record(tx, steps)
    recorded = record(tx, 2)
    w = {"w": jnp.ones(2)}
    state = recorded.init(w)
    with pytest.raises(ValueError, match=r"record: needs update\(grads, state, params\)"):
        recorded.update(w, state)
    with pytest.raises(TypeError, match=r"expected RecordState\(record_count, steps,"):
        recorded.update(w, tx.init(w), w)
    with pytest.raises(ValueError, match="no step is recorded yet"):
        Run.of(state)
    several = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    for unknown in (several, jax.eval_shape(recorded.init, w)):
        with pytest.raises(TypeError, match=r"Run\.of: state must be that of one run"):
            Run.of(unknown)
    with pytest.raises(TypeError, match=r"Run\.of: state must be that of one run"):
        jax.jit(Run.of)(state)
    with pytest.raises(ValueError, match="it holds 0"):
        Run.of(tx.init(w))
    clash = {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}
    _, state = recorded.update(clash, recorded.init(clash), clash)
    with pytest.raises(ValueError, match="two parameters have the path 'a/b'"):
        Run.of(state)


def test_it_is_a_value():
    make = lambda: record(ours.rmsprop(0.1), [0, 5])  # noqa: E731
    assert make() == make() == pickle.loads(pickle.dumps(make())) and hash(make()) == hash(make())
    public = {name: x for name, x in vars(ours).items() if not name.startswith("_")}
    assert eval(repr(make()), public) == make()
    assert isinstance(make().init(jnp.ones(2)), RecordState)


def a_run(**changes):
    arrays = {
        "params": {"a/b": np.arange(8.0).reshape(4, 2), "": np.ones(4, np.float32)},
        "grads": {"a/b": np.ones((2, 2)), "": np.zeros(2, np.float32)},
        "steps": np.array([0, 3]), "learning_rates": [0.5, 0.25], "settings": {"call": "f(ε)"},
    }  # fmt: skip
    return Run(**(arrays | changes))


def test_a_file_is_the_run_again(tmp_path):
    path = tmp_path / "run"
    for run in (a_run(), a_run(learning_rates=None), a_run(settings={})):
        run.save(path, force=True)
        again = Run.load(path)
        for field in ("params", "grads"):
            assert getattr(again, field).keys() == getattr(run, field).keys()
            for name, x in getattr(run, field).items():
                np.testing.assert_array_equal(getattr(again, field)[name], x, strict=True)
        np.testing.assert_array_equal(again.steps, run.steps, strict=True)
        np.testing.assert_equal(again.learning_rates, run.learning_rates)
        assert again.settings == run.settings and not again.is_from_start
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_bfloat16_is_kept_with_its_name(tmp_path):
    x = jnp.asarray([[1.0, 3.0], [2.0, 5.0]], jnp.bfloat16)
    Run({"w": x}, {"w": x[:1]}, [0]).save(tmp_path / "run.npz")
    run = Run.load(tmp_path / "run.npz")
    assert run.params["w"].dtype == np.float32 and run.settings == {"dtype/w": "bfloat16"}
    np.testing.assert_array_equal(run.params["w"], x.astype(np.float32))


def test_a_file_that_is_there_is_kept(tmp_path):
    path = tmp_path / "run.npz"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="force=True"):
        a_run().save(path)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_written_whole_is_not_written(tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        a_run().save(tmp_path / "run.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ["changes", "error", "words"],
    [
        ({"steps": [0, 0]}, ValueError, "steps must increase"),
        ({"steps": [-1, 3]}, ValueError, "steps must increase"),
        ({"steps": [0.0, 3.0]}, ValueError, "steps must be integers"),
        ({"steps": []}, ValueError, "steps must be integers"),
        ({"steps": [0, 1]}, ValueError, "params/a/b must have shape (3, 2), 3 rows for 2 steps"),
        ({"learning_rates": [0.5]}, ValueError, "learning_rates must have shape (2,), got (1,)"),
        ({"grads": {"a/b": np.ones((2, 2))}}, ValueError, "not the same paths: ''"),
        ({"settings": {"lr": 1}}, TypeError, "settings['lr'] must be a string"),
        (
            {"grads": {"a/b": np.ones((2, 3)), "": np.ones(2)}}, ValueError,
            "params/a/b must have shape (4, 3)",
        ),
        (
            {"grads": {"a/b": np.ones((2, 2), int), "": np.ones(2)}}, TypeError,
            "grads/a/b must have floating-point numbers",
        ),
    ],
)  # fmt: skip
def test_a_run_that_is_none_is_refused(changes, error, words):
    with pytest.raises(error) as caught:
        a_run(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ["key", "value", "words"],
    [
        ("steps", None, "has no 'steps'"),
        ("version", None, "has no 'version'"),
        ("settings", None, "has no 'settings'"),
        ("version", 2, "has version 2, known is 1"),
        ("version", "1", "has version 1, known is 1"),
        ("settings", "[]", "settings is no JSON object"),
        ("settings", "{", "settings is no JSON object"),
        ("settings", 3, "settings is no JSON object"),
        ("settings", '{"a": 1}', "settings['a'] must be a string"),
        ("weights", np.ones(2), "has the unknown key 'weights'"),
        ("grads/w", None, "not the same paths: 'w'"),
        ("params/w", np.ones((2, 2)), "params/w must have shape (3, 2)"),
        ("grads/w", np.ones(()), "must have shape"),
        ("grads/w", np.array(["a", "b"]), "grads/w must have floating-point numbers"),
        ("grads/w", np.array([None, "b"], object), "no .npz file of arrays"),
    ],
)
def test_a_file_of_another_layout_is_refused_by_its_key(tmp_path, key, value, words):
    arrays = {
        "version": 1, "steps": np.arange(2), "settings": "{}", "params/w": np.ones((3, 2)),
        "grads/w": np.ones((2, 2)),
    }  # fmt: skip
    np.savez(tmp_path / "good.npz", **arrays)
    Run.load(tmp_path / "good.npz")
    arrays = {name: x for name, x in (arrays | {key: value}).items() if x is not None}
    np.savez(tmp_path / "run.npz", **arrays)
    with pytest.raises((ValueError, TypeError)) as caught:
        Run.load(tmp_path / "run.npz")
    assert words in str(caught.value) and str(tmp_path / "run.npz") in str(caught.value)


class Harmful:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def test_broken_and_hostile_files_are_refused(tmp_path):
    path = tmp_path / "run.npz"
    a_run().save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"NUMPY") + 130] ^= 255
    bodies = [whole[: len(whole) // 2], whole[:-1], whole[:3], b"", b"text", bytes(flipped)]
    bodies.append(pickle.dumps(Harmful()))
    for body in bodies:
        path.write_bytes(body)
        with pytest.raises(ValueError, match=r"no \.npz file of arrays, or not a whole one"):
            Run.load(path)
    np.save(tmp_path / "one.npy", np.ones(2))
    np.savez(tmp_path / "pickle.npz", steps=np.array([Harmful()], object))
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("steps.npy", (header % 10**17).ljust(127) + b"\n")
    for name in ("one.npy", "pickle.npz", "huge.npz"):
        with pytest.raises(ValueError, match=r"no \.npz file of arrays, or not a whole one"):
            Run.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Run.load(tmp_path / "none.npz")


def test_the_lines_of_another_writer_are_enough(tmp_path):
    settings = json.dumps({"call": "RMSprop (lr: 0.01)"})
    np.savez(
        tmp_path / "run.npz", version=1, steps=np.arange(2), learning_rates=[0.1, 0.1],
        settings=settings, **{"params/layer.weight": np.ones((3, 2)),
        "grads/layer.weight": np.ones((2, 2))},
    )  # fmt: skip
    run = Run.load(tmp_path / "run.npz")
    assert list(run.params) == ["layer.weight"] and run.is_from_start


def test_rates_keep_their_type_where_64_bits_are_switched_on_after_init():
    tx, p = record(ours.rmsprop(1e-3), 2), jnp.ones(3)
    state = tx.init(p)
    with jax.enable_x64(True):
        after = jax.eval_shape(tx.update, p, state, p)[1]
    chex.assert_trees_all_equal_dtypes(state, after)
