"""State shardings equal the parameters' shardings, and an update never communicates."""

import math
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_rmsprop
from optax_rmsprop import _formats, dialects, sharding, storage
from tests.cases import CASES, cases, crossed

pytestmark = pytest.mark.api

# Leaves that differ in spec, rank and dtype: both axes, one of them, either order, none.
SPECS = {
    "both": P("x", "y"),
    "swapped": P("y", "x"),
    "columns": P(None, "y"),
    "together": P(("x", "y")),
    "scalar": P(),
}
SHAPES = {
    "both": ((8, 4), jnp.bfloat16),
    "swapped": ((4, 8), jnp.float32),
    "columns": ((3, 2), jnp.complex64),
    "together": ((16,), jnp.bfloat16),
    "scalar": ((), jnp.float32),
}
KINDS = {"Auto": AxisType.Auto, "Explicit": AxisType.Explicit}
# What follows from the links being elementwise is seen on chains of all of them.
chains = cases(signed=True, centered=True)
chains_on_meshes = crossed("kind", KINDS, signed=True, centered=True)
COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
    r"|collective-broadcast|send|recv)(-start)?\("
)


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def mesh(kind, grid):
    mesh = jax.make_mesh(grid, ("x", "y"), axis_types=(kind,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def values(scale: float = 1.0) -> dict[str, np.ndarray]:
    """Away from zero, with both signs, and the same for every shape."""
    found = {}
    for name, (shape, dtype) in SHAPES.items():
        size = math.prod(shape)
        x = scale * (0.5 + np.arange(size)) * (-1.0) ** np.arange(size) / 4
        x = x + 1j * x[::-1] if np.issubdtype(dtype, np.complexfloating) else x
        found[name] = x.reshape(shape).astype(dtype)
    return found


def placed(tree: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    return {name: jax.device_put(x, NamedSharding(mesh, SPECS[name])) for name, x in tree.items()}


def accumulators(state: Any) -> list[dict[str, Any]]:
    """The parts of a state that are trees like the parameters."""
    is_stored = lambda x: isinstance(x, storage.Stored)  # noqa: E731
    codes = jax.tree.map(
        lambda x: _formats.arrays_of(x) if is_stored(x) else x, state, is_leaf=is_stored
    )
    parts = jax.tree.leaves(codes, is_leaf=lambda part: isinstance(part, dict))
    return [part for part in parts if isinstance(part, dict)]


def assert_shardings(trees: list[Any], like: dict[str, jax.Array]) -> None:
    for tree in trees:
        assert tree.keys() == like.keys()
        for name, x in tree.items():
            expected = like[name].sharding
            assert x.sharding.is_equivalent_to(expected, x.ndim), (name, x.sharding, expected)
            shapes = {shard.data.shape for shard in x.addressable_shards}
            assert shapes == {expected.shard_shape(x.shape)}


def collectives(compiled: Any) -> list[str]:
    return [match.group(1) for match in COLLECTIVE.finditer(compiled.as_text())]


@pytest.mark.device
@crossed("kind", KINDS)
def test_the_state_is_sharded_like_the_parameters_through_init_and_update(case, mesh):
    tx = case()
    params, grads = placed(values(), mesh), placed(values(0.5), mesh)
    eager, jitted = tx.init(params), jax.jit(tx.init)(params)
    assert_shardings(accumulators(eager), params)
    assert_shardings(accumulators(jitted), params)
    assert len(accumulators(jitted)) == len(case.hyper.keys() & {"decay", "momentum"}) + (
        case.centered
    )
    chex.assert_trees_all_equal(eager, jitted)

    # The last rate is written and not read: without keep_unused it is not passed at all.
    update = jax.jit(tx.update, donate_argnums=1, keep_unused=True)
    update = update.lower(grads, jitted, params).compile()
    assert collectives(update) == []
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(jitted))
    assert update.memory_analysis().alias_size_in_bytes == held
    state = jitted
    for _ in range(2):
        updates, state = update(grads, state, params)
        assert_shardings([updates], grads)
        assert_shardings(accumulators(state), params)


@pytest.mark.device
@chains_on_meshes
def test_an_eager_update_keeps_the_shardings(case, mesh):
    tx = case()
    params, grads = placed(values(), mesh), placed(values(0.5), mesh)
    updates, state = tx.update(grads, tx.init(params), params)
    assert_shardings([updates], grads)
    assert_shardings(accumulators(state), params)


@pytest.mark.device
def test_a_share_of_a_sharded_norm_is_that_of_the_whole(mesh):
    tx = optax_rmsprop.chain(dialects.adaptive_clip_by_norm(0.125), optax_rmsprop.ema(0.5))
    alone = run(tx, values(), values(0.5), values(0.25))
    sharded = run(tx, *(placed(values(scale), mesh) for scale in (1.0, 0.5, 0.25)))
    assert_close(jax.device_get(sharded), jax.device_get(alone))


@pytest.mark.device
@chains_on_meshes
def test_a_sharded_run_equals_the_run_on_one_device(case, mesh):
    tx = case()
    alone = run(tx, values(), values(0.5), values(0.25))
    sharded = run(tx, *(placed(values(scale), mesh) for scale in (1.0, 0.5, 0.25)))
    assert_close(jax.device_get(sharded), jax.device_get(alone))


def run(tx: Any, params: Any, *grads: Any) -> Any:
    """The updates and the state after one step for each of `grads`."""
    state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
    for g in grads:
        updates, state = update(g, state, params)
    return updates, state


def assert_close(actual: Any, expected: Any) -> None:
    """Equal but for the order of the roundings.

    Two steps make fewer than 32 roundings of any number, none of which loses more than half of its
    leading digits, as both gradients have one sign; updates are then rounded to their own dtype.
    """

    def leaf(a, b):
        half = a.dtype in (jnp.bfloat16, jnp.float16)
        rtol = 64 * 2**-24 + (float(jnp.finfo(a.dtype).eps) if half else 0.0)
        wide = np.complex64 if np.iscomplexobj(a) else np.float32
        np.testing.assert_allclose(a.astype(wide), b.astype(wide), rtol=rtol)

    chex.assert_trees_all_equal_dtypes(actual, expected)
    jax.tree.map(leaf, actual, expected)


@pytest.mark.device
@crossed("kind", KINDS)
def test_a_state_may_be_split_where_the_parameters_are_whole(case, mesh):
    """A shard of the optimizer's state for each device, as in ZeRO's first stage."""
    params = {"w": jnp.asarray(np.arange(1.0, 33.0, dtype=np.float32).reshape(8, 4))}
    tx, whole = case(), jax.device_put(params, NamedSharding(mesh, P()))
    expected, _ = tx.update(params, tx.init(params), params)

    def split(x):
        return jax.device_put(x, NamedSharding(mesh, P("x"))) if x.ndim else x

    state = jax.tree.map(split, tx.init(whole))
    updates, after = jax.jit(tx.update)(whole, state, whole)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert new.sharding.is_equivalent_to(old.sharding, old.ndim) or not old.ndim


@pytest.mark.device
@chains_on_meshes
def test_inside_shard_map_it_is_the_same_and_local(case, mesh):
    tx = case()
    host, steps = values(), (values(0.5), values(0.25))
    specs = jax.tree.map(
        lambda part: SPECS if isinstance(part, dict) else P(),
        tx.init(host),
        is_leaf=lambda part: isinstance(part, dict),
    )

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(SPECS, SPECS, SPECS), out_specs=(SPECS, specs))
    def local(params, first, second):
        _, state = tx.update(first, tx.init(params), params)
        return tx.update(second, state, params)

    sharded = [placed(tree, mesh) for tree in (host, *steps)]
    assert collectives(local.lower(*sharded).compile()) == []
    assert_close(jax.device_get(local(*sharded)), jax.device_get(run(tx, host, *steps)))


@pytest.mark.parametrize(
    "tx",
    [
        optax_rmsprop.rmspropw(0.1, momentum=0.9, weight_decay=0.1),
        storage.stored_as(
            optax_rmsprop.rmsprop(0.1, momentum=0.9), storage.uint8(), storage.int8()
        ),
    ],
    ids=["rmspropw", "stored"],
)
def test_inside_shard_map_a_member_for_each_device_with_its_own_count(tx, eight_devices):
    """What varies over the mesh meets what does not."""
    line = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    params, grads = jnp.ones((64, 64)), jax.random.normal(jax.random.key(0), (8, 64, 64))
    states = jax.vmap(lambda _: tx.init(params))(jnp.arange(8))

    def member(g, state, params):
        g, state = jax.tree.map(lambda x: x[0], (g, state))
        return jax.tree.map(lambda x: x[None], tx.update(g, state, params))

    spread = P("x")
    run = jax.shard_map(member, mesh=line, in_specs=(spread, spread, P()), out_specs=spread)
    found = jax.jit(run)(grads, states, params)
    assert_close(found, jax.vmap(tx.update, (0, 0, None))(grads, states, params))


@chains
def test_under_vmap_it_is_the_same_as_one_by_one(case):
    tx = case()
    population = [[values(size * scale) for scale in (1.0, 0.5, 0.25)] for size in (1, 2, 4)]
    together = jax.tree.map(lambda *x: np.stack(x), *population)

    @jax.vmap
    def swept(params, first, second):
        _, state = tx.update(first, tx.init(params), params)
        return tx.update(second, state, params)

    alone = [run(tx, *member) for member in population]
    expected = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(alone))
    assert_close(jax.device_get(jax.jit(swept)(*together)), expected)


@chains
def test_a_population_keeps_the_sharding_of_its_axis(case):
    tx = case()
    mesh = jax.make_mesh((8,), ("population",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("population"))
    params = jax.device_put({"w": np.ones((8, 3), jnp.bfloat16), "b": np.ones(8)}, split)
    state = jax.jit(jax.vmap(tx.init))(params)
    assert_shardings(accumulators(state), params)
    update = jax.jit(jax.vmap(tx.update)).lower(params, state, params).compile()
    assert collectives(update) == []


@pytest.mark.parametrize(
    "tx",
    [
        optax.adam(0.1),
        optax.chain(optax.clip(1.0), optax.rmsprop(0.1, momentum=0.9)),
        optax_rmsprop.rmsprop(0.1, centered=True, momentum=0.75),
        storage.stored_as(optax.rmsprop(0.1), lambda path, leaf: storage.uint8(2)),
    ],
    ids=["optax.adam", "optax.rmsprop", "ours", "stored"],
)
def test_one_line_splits_any_state_like_its_parameters(tx, mesh):
    params = placed({k: v for k, v in values().items() if k != "columns"}, mesh)
    params["replicated"] = jax.device_put(np.ones((3, 5)), NamedSharding(mesh, P()))
    abstract = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params
    )
    shardings = sharding.state_shardings(tx, abstract)
    with jax.numpy_dtype_promotion("standard"):
        state = jax.jit(tx.init, out_shardings=shardings)(params)
        chex.assert_trees_all_equal(state, tx.init(params))
    assert_shardings(accumulators(state), params)
    # Of exponents of blocks there are fewer; they are split too.
    if "inner_state" in getattr(state, "_fields", ()):
        base = state.inner_state[0].nu.exponents
        assert base["swapped"].sharding.shard_shape(base["swapped"].shape) == (2, 1)


# Where people call `init`: stacked layers [4, 8, 4], of which the last two axes are split.
WHOLE = P(None, "x", "y")
MESHES = {
    "automatic": (AxisType.Auto, AxisType.Auto),
    "explicit": (AxisType.Explicit, AxisType.Explicit),
    "mixed": (AxisType.Explicit, AxisType.Auto),
    "mixed-other": (AxisType.Auto, AxisType.Explicit),
}


def over(axis: int) -> Any:
    return lambda f: jax.vmap(f, in_axes=axis, out_axes=axis)


def manual(spec: P, *axes: str) -> Any:
    return lambda f: jax.shard_map(f, in_specs=spec, out_specs=spec, axis_names=set(axes))


def layer_by_layer(f: Any) -> Any:
    return lambda p: jax.lax.scan(lambda carry, layer: (carry, f(layer)), None, p)[1]


PLACES = {
    "plain": lambda f: f,
    "vmap": over(0),
    "vmap-split": over(1),
    "vmap-vmap": lambda f: over(1)(over(1)(f)),
    "scan": layer_by_layer,
    "vmap-scan": lambda f: over(1)(layer_by_layer(f)),
    "shard_map": manual(WHOLE, "x", "y"),
    "shard_map-x": manual(P(None, "x"), "x"),
    "shard_map-y": manual(P(None, None, "y"), "y"),
    "shard_map-x-vmap": lambda f: manual(P(None, "x"), "x")(over(0)(f)),
    "shard_map-y-vmap-split": lambda f: manual(P(None, None, "y"), "y")(over(1)(f)),
    "shard_map-x-scan": lambda f: manual(P(None, "x"), "x")(layer_by_layer(f)),
}


@pytest.mark.device
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kinds", MESHES)
def test_a_state_lies_as_its_parameters_wherever_init_is_called(kinds, place, grid):
    # Every accumulator is made by one function; these have all kinds of them.
    names = ("rmsprop-everything", "stored-uint16", "stored-uint8", "dialect-torch")
    rows = [case for case in CASES if case.name in names]
    chain = optax_rmsprop.rmsprop(0.125, centered=True, momentum=0.75)

    def region(p):
        def arrays(state):  # with an axis for each of the parameter's
            return [x for x in jax.tree.leaves(state) if x.ndim == p.ndim]

        def step(state, _):
            return chain.update(p, state, p)[1], None  # whose types are the state's, or it raises

        return {
            "parameter": -p,
            "state": {case.name: arrays(case().init(p)) for case in rows},
            "stepped": arrays(jax.lax.scan(step, chain.init(p), length=2)[0]),
            "optax": arrays(optax.rmsprop(0.125, centered=True, momentum=0.75).init(p)),
        }

    mesh = jax.make_mesh(grid, ("x", "y"), axis_types=MESHES[kinds])
    with jax.set_mesh(mesh):
        layers = np.stack([values(scale)["both"] for scale in (1.0, 0.5, 0.25, 0.125)])
        p = jax.device_put(layers, NamedSharding(mesh, WHOLE))
        found = jax.jit(PLACES[place](region))(p)
    # The parameter takes the same way: in a mixed mesh, JAX 0.10 forgets an axis of it too.
    expected = found["parameter"].sharding
    if "mixed" not in kinds or "shard_map" not in place:
        assert expected.is_equivalent_to(p.sharding, p.ndim)
    for x in jax.tree.leaves((found["state"], found["stepped"])):
        assert x.sharding.is_equivalent_to(expected, p.ndim), x.sharding
    assert len(found["stepped"]) == 3 and found["state"]["stored-uint8"]
    for x in found["optax"]:
        size = math.prod(expected.shard_shape(p.shape))
        assert size <= math.prod(x.sharding.shard_shape(p.shape))


@pytest.mark.device
@cases(divides=True)
def test_init_under_jit_reads_no_parameter_and_does_not_mind_nan(case):
    params = {"w": jnp.full((64, 32), jnp.nan), "b": jnp.full(8, jnp.nan, jnp.bfloat16)}
    init = jax.jit(case().init).lower(params).compile()
    state = init(params)
    chex.assert_trees_all_equal(state, case().init(params))
    # Constants are all there is to write from: there is no argument.
    of_constants = jax.jit(lambda: case().init(jax.tree.map(np.zeros_like, params))).lower()
    assert (
        init.cost_analysis()["bytes accessed"]
        == (of_constants.compile().cost_analysis()["bytes accessed"])
    )
    # A copy of `w` would be 8,192 bytes; a GPU's program has some hundred for its constants.
    allowed = 0 if jax.default_backend() == "cpu" else 1024
    assert init.memory_analysis().temp_size_in_bytes <= allowed


@cases(divides=True)
def test_parameters_in_the_hosts_memory_have_a_state_too(case, mesh):
    place = NamedSharding(mesh, P("x"), memory_kind="pinned_host")
    params = {"w": jax.device_put(jnp.ones((8, 4)), place)}
    expected = case().init({"w": jnp.ones((8, 4))})
    chex.assert_trees_all_equal(jax.device_get(jax.jit(case().init)(params)), expected)
    abstract = jax.eval_shape(case().init, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, expected)
    sharding.state_shardings(case(), params)


def test_parameters_that_are_summed_over_an_axis_have_a_state_too():
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    if not hasattr(jax, "reshard"):
        pytest.skip("this JAX cannot say so in a type")
    with jax.set_mesh(mesh):
        reduced = jax.jit(lambda p: jax.reshard(p, P(None, None, reduced={"x"})))(jnp.ones((8, 8)))
        for tx in (optax_rmsprop.rmsprop(0.1, momentum=0.9), optax.rmsprop(0.1, momentum=0.9)):
            assert optax.tree.get(jax.jit(tx.init)(reduced), "nu").shape == (8, 8)


def test_parameters_without_a_mesh_are_named():
    with pytest.raises(ValueError, match=r"state_shardings: the parameter at \['w'\] has no"):
        sharding.state_shardings(optax.sgd(0.1), {"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="there are no parameters"):
        sharding.state_shardings(optax.sgd(0.1), {})


def test_the_abstract_state_of_an_explicit_mesh_says_its_shardings():
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        params = placed(values(), mesh)
        tx = optax_rmsprop.rmsprop(0.125, centered=True, momentum=0.75)
        for tree in accumulators(jax.eval_shape(tx.init, params)):
            for name, x in tree.items():
                assert x.sharding.spec == params[name].sharding.spec


def test_the_search_for_collectives_can_fail(mesh):
    x = placed(values(), mesh)["swapped"]
    whole = NamedSharding(mesh, P())
    communicating = {
        "all-reduce": lambda x: x.sum(),
        "all-gather": lambda x: (
            jax.sharding.reshard(x, whole)
            if mesh.axis_types[0] == AxisType.Explicit
            else jax.lax.with_sharding_constraint(x, whole)
        ),
    }
    for name, function in communicating.items():
        assert name in collectives(jax.jit(function).lower(x).compile())
    assert collectives(jax.jit(lambda x: 2 * x).lower(x).compile()) == []


def test_the_comparison_of_shardings_can_fail(mesh):
    params = placed(values(), mesh)
    for other in (P("x", "y"), P("y", None), P(None, "x"), P(None, None)):
        moved = jax.device_put(params["swapped"], NamedSharding(mesh, other))
        with pytest.raises(AssertionError):
            assert_shardings([params | {"swapped": moved}], params)
    alone = jax.device_put(np.asarray(params["scalar"]), jax.devices()[0])
    with pytest.raises(AssertionError):
        assert_shardings([params | {"scalar": alone}], params)


VARYING = {
    "decay": dialects.torch(0.1, weight_decay=0.1, momentum=0.9),
    "nesterov": optax_rmsprop.rmsprop(0.1, momentum=0.9, nesterov=True),
    "uint8": storage.stored_as(optax_rmsprop.rmsprop(0.1), lambda path, leaf: storage.uint8()),
}


@pytest.mark.parametrize("tx", VARYING.values(), ids=VARYING)
def test_gradients_that_vary_over_a_mesh_meet_parameters_that_do_not(tx, eight_devices):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    params, grads = jnp.ones((2, 8)), jnp.arange(1.0, 129.0).reshape(16, 8)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(P(), P("x")), out_specs=P("x"))
    def step(params, grads):
        return tx.update(grads, tx.init(params), params)[0]

    alone = [tx.update(g, tx.init(params), params)[0] for g in jnp.split(grads, 8)]
    np.testing.assert_allclose(step(params, grads), jnp.concatenate(alone), rtol=1e-5)
