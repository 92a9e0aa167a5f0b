"""A run that moves: k steps there, k steps here, k steps there again, as 3k steps there."""

import contextlib
import io
import itertools
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optax_rmsprop
from optax_rmsprop import dialects, interop
from tests.live import needed
from tools.frameworks import stable_baselines3_optimizer, their_own_world, timm_optimizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

K, RATE = 12, 0.02
NAMES = ["weight", "bias"]
SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True, "eps": 1e-4},
    "centered-momentum": {"centered": True, "eps": 1e-4, "momentum": 0.9},
}
TABLE = RATE * 0.9 ** np.arange(3 * K)
every_setting = pytest.mark.parametrize("setting", SETTINGS)
scheduled_or_not = pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "schedule"])
both_widths = pytest.mark.parametrize("dtype", [np.float64, np.float32])


def problem(dtype):
    """A weight as [out, in] and a bias, and their gradients for three times k steps."""
    rng = np.random.default_rng(11)
    shapes = {"weight": (3, 4), "bias": (3,)}
    params = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    grads = [
        {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
        for _ in range(3 * K)
    ]
    return params, grads


def to_flax(named):
    return {"dense": {"kernel": named["weight"].T, "bias": named["bias"]}}


def to_named(tree):
    return {"weight": tree["dense"]["kernel"].T, "bias": tree["dense"]["bias"]}


def here(tx, state, params, grads):
    """Steps in JAX: the parameters and the state after them."""
    p = jax.tree.map(jnp.asarray, to_flax(params))
    for g in grads:
        updates, state = tx.update(jax.tree.map(jnp.asarray, to_flax(g)), state, p)
        p = optax.apply_updates(p, updates)
    return jax.tree.map(np.asarray, to_named(p)), state


def tolerance(dtype):
    # Float32: a parameter, of size 3, is rounded once a step, and so is each step in its 4 ulp.
    return 1e-12 if dtype == np.float64 else 3 * K * 2 * np.finfo(np.float32).eps


def assert_close(got, expected, dtype):
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], atol=tolerance(dtype), rtol=0)


class Torch:
    """A torch optimizer and its parameters, by name."""

    def __init__(self, make, options, params, saved=None):
        import torch

        # In one order: JAX sorts the keys of a dictionary, torch counts the parameters.
        self.params = {name: torch.nn.Parameter(torch.tensor(params[name])) for name in NAMES}
        self.optimizer = make(list(self.params.items()), **options)
        if saved is not None:
            tree_map_only = torch.utils._pytree.tree_map_only
            self.optimizer.load_state_dict(tree_map_only(np.ndarray, torch.from_numpy, saved))

    def steps(self, grads, rates=None):
        import torch

        for t, g in enumerate(grads):
            if rates is not None:
                self.optimizer.param_groups[0]["lr"] = float(rates[t])
            for name, p in self.params.items():
                p.grad = torch.tensor(g[name])
            self.optimizer.step()
        return {name: p.detach().numpy().copy() for name, p in self.params.items()}


def makers():
    import torch

    return {
        "torch": (torch.optim.RMSprop, dialects.torch),
        "timm": (timm_optimizer(), dialects.timm),
        "stable_baselines3": (stable_baselines3_optimizer(), dialects.stable_baselines3),
    }


@every_setting
@scheduled_or_not
@both_widths
@pytest.mark.parametrize("which", ["torch", "timm", "stable_baselines3"])
def test_torch_there_and_back(which, setting, scheduled, dtype):
    needed(which, "torch")
    make, dialect = makers()[which]
    options = {"lr": RATE, **SETTINGS[setting]}
    params, grads = problem(dtype)
    rates = TABLE if scheduled else None
    a, b, c = slice(0, K), slice(K, 2 * K), slice(2 * K, 3 * K)
    with their_own_world():
        expected = Torch(make, options, params).steps(grads, rates)

        first = Torch(make, options, params)
        p = first.steps(grads[a], None if rates is None else rates[a])
        lr = (lambda count: jnp.asarray(TABLE)[count]) if scheduled else RATE
        tx = dialect(**options | {"lr": lr})
        empty = tx.init(jax.tree.map(jnp.asarray, to_flax(p)))
        state = interop.from_torch(first.optimizer.state_dict(), empty, to_flax, names=NAMES)
        assert int(optax.tree.get(state, "count")) == K
        p, state = here(tx, state, p, grads[b])

        second = Torch(make, options, p)
        saved = interop.to_torch(state, second.optimizer.state_dict(), to_named, names=NAMES)
        third = Torch(make, options, p, saved)
        got = third.steps(grads[c], None if rates is None else rates[c])
        assert float(third.optimizer.state_dict()["state"][0]["step"]) == 3 * K
    assert_close(got, expected, dtype)


def test_torch_into_the_other_order_of_rate_and_buffer():
    """At a constant rate the two orders are one, and the buffer differs by minus the rate."""
    needed("torch")
    import torch

    options = {"lr": RATE, "momentum": 0.9, "eps": 1e-4}
    params, grads = problem(np.float64)
    with their_own_world():
        expected = Torch(torch.optim.RMSprop, options, params).steps(grads)
        first = Torch(torch.optim.RMSprop, options, params)
        p = first.steps(grads[:K])
        tx = optax_rmsprop.rmsprop(RATE, 0.99, 1e-4, eps_in_sqrt=False, momentum=0.9)
        empty = tx.init(jax.tree.map(jnp.asarray, to_flax(p)))
        state = interop.from_torch(first.optimizer.state_dict(), empty, to_flax)
        p, state = here(tx, state, p, grads[K : 2 * K])
        saved = interop.to_torch(state, first.optimizer.state_dict(), to_named)
        got = Torch(torch.optim.RMSprop, options, p, saved).steps(grads[2 * K :])
    assert_close(got, expected, np.float64)


def test_torch_groups_become_a_partition():
    needed("torch")
    import torch

    params, grads = problem(np.float64)
    with their_own_world():

        def made(values):
            made = Torch(torch.optim.RMSprop, {}, values)
            groups = [
                {"params": [("weight", made.params["weight"])], "lr": 0.02, "momentum": 0.9},
                {"params": [("bias", made.params["bias"])], "lr": 0.005, "momentum": 0.9},
            ]
            made.optimizer = torch.optim.RMSprop(groups, eps=1e-4)
            return made

        expected = made(params).steps(grads)
        first = made(params)
        p = first.steps(grads[:K])
        tx = optax.partition(
            {
                "kernel": dialects.torch(0.02, eps=1e-4, momentum=0.9),
                "bias": dialects.torch(0.005, eps=1e-4, momentum=0.9),
            },
            {"dense": {"kernel": "kernel", "bias": "bias"}},
        )
        empty = tx.init(jax.tree.map(jnp.asarray, to_flax(p)))
        state = interop.from_torch(first.optimizer.state_dict(), empty, to_flax)
        rates = [float(x) for _, x in optax.tree.get_all_with_path(state, "last_learning_rate")]
        assert sorted(rates) == [0.005, 0.02]
        p, state = here(tx, state, p, grads[K : 2 * K])
        second = made(p)
        saved = interop.to_torch(state, second.optimizer.state_dict(), to_named)
        tree_map_only = torch.utils._pytree.tree_map_only
        second.optimizer.load_state_dict(tree_map_only(np.ndarray, torch.from_numpy, saved))
        got = second.steps(grads[2 * K :])
    assert_close(got, expected, np.float64)


def test_each_group_moves_its_own_rate_into_the_buffer():
    needed("torch")
    import torch

    params, grads = problem(np.float64)
    with their_own_world():
        first = Torch(torch.optim.RMSprop, {}, params)
        groups = [
            {"params": [(name, first.params[name])], "lr": lr, "momentum": 0.9}
            for name, lr in (("weight", 0.02), ("bias", 0.005))
        ]
        first.optimizer = torch.optim.RMSprop(groups)
        first.steps(grads[:K])
        tx = optax_rmsprop.rmsprop(0.1, momentum=0.9)
        empty = tx.init(jax.tree.map(jnp.asarray, to_flax(params)))
        state = interop.from_torch(first.optimizer.state_dict(), empty, to_flax)
        saved = first.optimizer.state_dict()["state"]
        trace = optax.tree.get(state, "trace")["dense"]
        np.testing.assert_allclose(trace["kernel"], -0.02 * saved[0]["momentum_buffer"].T)
        np.testing.assert_allclose(trace["bias"], -0.005 * saved[1]["momentum_buffer"])
        # Two rates have no place in one number: it stays what it was.
        assert float(optax.tree.get(state, "last_learning_rate")) == 0.1
        # One group has steps, the other directions.
        groups = {"kernel": tx, "bias": dialects.torch(0.1, momentum=0.9)}
        labels = {"dense": {"kernel": "kernel", "bias": "bias"}}
        empty = optax.partition(groups, labels).init(empty[0].nu)
        state = interop.from_torch(first.optimizer.state_dict(), empty, to_flax)
        parts = [state.inner_states[label].inner_state for label in groups]
        steps, directions = (optax.tree.get(part, "trace")["dense"] for part in parts)
        np.testing.assert_allclose(steps["kernel"], trace["kernel"])
        np.testing.assert_allclose(directions["bias"], saved[1]["momentum_buffer"])
        both = interop.layout(to_flax(params), rename=lambda name: "")
        back = interop.to_torch(state, first.optimizer.state_dict(), both.to_torch)
        for i, entry in saved.items():
            np.testing.assert_allclose(
                back["state"][i]["momentum_buffer"], entry["momentum_buffer"]
            )


def network(*sizes, frozen=()):
    """Linear layers without a bias in PyTorch, and their weights by name."""
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Linear(*pair, bias=False) for pair in itertools.pairwise(sizes)]
    net = torch.nn.Sequential(*layers)
    for i in frozen:
        net[i].requires_grad_(False)
    return net, {name: p.detach().numpy().copy() for name, p in net.named_parameters()}


def descend(net, optimizer, steps=3):
    import torch

    for t in range(steps):
        optimizer.zero_grad()
        net(torch.full((2, net[0].in_features), t + 1.0)).pow(2).sum().backward()
        optimizer.step()


def load(optimizer, saved):
    import torch

    tree_map_only = torch.utils._pytree.tree_map_only
    optimizer.load_state_dict(tree_map_only(np.ndarray, torch.from_numpy, saved))


def test_torch_writes_into_what_it_was_given_and_not_into_the_state():
    needed("torch")
    import torch

    net, params = network(3, 3)
    optimizer = torch.optim.RMSprop(net.named_parameters(), momentum=0.9, centered=True)
    tx = dialects.torch(momentum=0.9, centered=True)
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = tx.update(grads, tx.init(params), params)
    before = jax.tree.map(lambda x: np.array(x), state)
    load(optimizer, interop.to_torch(state, optimizer.state_dict(), dict))
    descend(net, optimizer)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), state, before))


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flattened"])
def test_a_distributed_checkpoint_is_keyed_by_name(flatten):
    needed("torch")
    import torch
    from torch.distributed.checkpoint import state_dict as distributed

    net, params = network(2, 2, 2)
    # The head comes first, and both parameters have one shape.
    groups = [
        {"params": [layer.weight], "lr": lr}
        for layer, lr in zip(net[::-1], (0.5, 0.25), strict=True)
    ]
    optimizer = torch.optim.RMSprop(groups, momentum=0.9)
    descend(net, optimizer)
    options = distributed.StateDictOptions(flatten_optimizer_state_dict=flatten)
    saved = distributed.get_optimizer_state_dict(net, optimizer, options=options)
    state = interop.from_torch(saved, dialects.torch(momentum=0.9).init(params), dict)
    for layer, name in zip(net, params, strict=True):
        entry = optimizer.state[layer.weight]
        np.testing.assert_array_equal(state[0].nu[name], entry["square_avg"])
        np.testing.assert_array_equal(state[1].trace[name], entry["momentum_buffer"])
    # The recipe of the message, for the positions of a plain state dictionary.
    name = {id(p): n for n, p in net.named_parameters()}
    names = [name[id(p)] for group in optimizer.param_groups for p in group["params"]]
    plain = interop.from_torch(
        optimizer.state_dict(), dialects.torch(momentum=0.9).init(params), dict, names=names
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), plain, state))
    other = torch.optim.RMSprop(groups, momentum=0.9)
    back = interop.to_torch(state, saved, dict)
    tree_map_only = torch.utils._pytree.tree_map_only
    back = tree_map_only(np.ndarray, torch.from_numpy, back)
    other.zero_grad()  # with gradients there, torch sets nothing of a flattened one
    distributed.set_optimizer_state_dict(net, other, back, options=options)
    for layer in net:
        for key, value in optimizer.state[layer.weight].items():
            np.testing.assert_array_equal(other.state[layer.weight][key], value)


@pytest.mark.parametrize("given", ["all of them", "the trained ones"])
def test_a_frozen_backbone_stays_frozen_and_is_trained_later(given):
    needed("torch")
    import torch

    net, params = network(3, 4, 2, frozen=[0])
    trained = [(n, p) for n, p in net.named_parameters() if p.requires_grad or given[0] == "a"]
    optimizer = torch.optim.RMSprop(trained, momentum=0.9)
    descend(net, optimizer)
    make = lambda: dialects.torch(momentum=0.9)  # noqa: E731
    tx = optax.partition(
        {"on": make(), "off": optax.set_to_zero()}, {"0.weight": "off", "1.weight": "on"}
    )
    state = interop.from_torch(optimizer.state_dict(), tx.init(params), dict)
    nu = optax.tree.get(state, "nu")
    np.testing.assert_array_equal(nu["1.weight"], optimizer.state[net[1].weight]["square_avg"])
    again = torch.optim.RMSprop(trained, momentum=0.9)
    load(again, interop.to_torch(state, optimizer.state_dict(), dict))
    assert net[0].weight not in again.state
    if given[0] == "a":
        net[0].requires_grad_(True)
        descend(net, again)  # unfrozen in torch: fewer steps for the body than for the head
        with pytest.raises(ValueError, match="differ in their number of steps"):
            interop.from_torch(again.state_dict(), make().init(params), dict)
        state = interop.from_torch(again.state_dict(), make().init(params), dict, count=6)
        expected = again.state[net[0].weight]["square_avg"]
        np.testing.assert_array_equal(state[0].nu["0.weight"], expected)


def test_a_tensor_that_is_split_over_processes_is_gathered(tmp_path):
    needed("torch")
    import torch
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        net, params = network(2, 3)
        fully_shard(net, mesh=mesh)
        optimizer = torch.optim.RMSprop(net.named_parameters())
        descend(net, optimizer)
        saved = optimizer.state_dict()
        assert type(saved["state"][0]["square_avg"]).__name__ == "DTensor"
        state = interop.from_torch(saved, dialects.torch().init(params), dict)
        expected = saved["state"][0]["square_avg"].full_tensor()
        np.testing.assert_array_equal(state[0].nu["0.weight"], expected)
    finally:
        distributed.destroy_process_group()


def test_other_numbers_of_torch_are_converted_or_refused_by_name():
    needed("torch")
    import torch

    like = dialects.torch().init({"w": jnp.zeros(2)})
    x = torch.tensor([1.0, 2.0])

    def nu(square_avg):
        saved = {
            "state": {0: {"step": 1.0, "square_avg": square_avg}},
            "param_groups": [{"lr": 0.1, "params": [0], "param_names": ["w"]}],
        }
        return interop.from_torch(saved, like, dict)[0].nu["w"]

    quantised = torch.quantize_per_tensor(x, 0.5, 0, torch.quint8)
    for square_avg in (x.to(torch.float8_e4m3fn), x.to(torch.float8_e5m2), quantised, x.double()):
        np.testing.assert_array_equal(nu(square_avg), x)
    for square_avg in (x.to("meta"), x.to_sparse()):
        with pytest.raises(TypeError, match="the square_avg of 'w' is no array that can be read"):
            nu(square_avg)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_a_half_precision_state_is_widened(half):
    needed("torch")
    import torch

    model = torch.nn.Linear(4, 3, dtype=getattr(torch, half))
    optimizer = torch.optim.RMSprop(model.named_parameters(), momentum=0.9)
    model(torch.ones(2, 4, dtype=getattr(torch, half))).sum().backward()
    optimizer.step()
    params = {name: p.detach().float().numpy() for name, p in model.named_parameters()}
    empty = dialects.torch(momentum=0.9).init(jax.tree.map(jnp.asarray, to_flax(params)))
    state = interop.from_torch(optimizer.state_dict(), empty, to_flax)
    nu = optax.tree.get(state, "nu")["dense"]["kernel"]
    saved = optimizer.state_dict()["state"][0]["square_avg"].float().numpy()
    assert nu.dtype == jnp.float32
    np.testing.assert_array_equal(nu, saved.T)


def test_complex_parameters_become_pairs():
    needed("torch")
    import torch

    p = torch.nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
    optimizer = torch.optim.RMSprop([("p", p)], momentum=0.9, centered=True)
    p.grad = torch.tensor([0.5 - 1j, 2 + 2j])
    optimizer.step()
    tx = dialects.torch(momentum=0.9, centered=True)
    like = {"p": jnp.array([1 + 2j, 3 - 1j])}
    state = interop.from_torch(optimizer.state_dict(), tx.init(like), lambda named: named)
    _, expected = tx.update({"p": jnp.array([0.5 - 1j, 2 + 2j])}, tx.init(like), like)
    for ours, made in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, made, rtol=1e-4)


@every_setting
@scheduled_or_not
@both_widths
def test_keras_there_and_back(setting, scheduled, dtype):
    needed("keras")
    import keras

    options = {"learning_rate": float(np.float32(RATE)), **SETTINGS[setting]}
    options["epsilon"] = options.pop("eps", 1e-7)
    params, grads = problem(dtype)

    class Table(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, count):
            return jnp.asarray(TABLE)[jnp.asarray(count)]

    if scheduled:
        options["learning_rate"] = Table()

    def made(values, carried=None):
        variables = [keras.Variable(values[n], dtype=np.dtype(dtype).name, name=n) for n in NAMES]
        optimizer = keras.optimizers.RMSprop(**options)
        optimizer.build(variables)
        for variable, value in zip(optimizer.variables, carried or [], strict=False):
            variable.assign(value)
        return optimizer, variables

    def steps(optimizer, variables, grads):
        for g in grads:
            optimizer.apply([jnp.asarray(g[name]) for name in NAMES], variables)
        return {n: np.asarray(v.value) for n, v in zip(NAMES, variables, strict=True)}

    with their_own_world():
        expected = steps(*made(params), grads)
        optimizer, variables = made(params)
        p = steps(optimizer, variables, grads[:K])
        rate = (lambda count: jnp.asarray(TABLE)[count]) if scheduled else options["learning_rate"]
        tx = dialects.keras(**options | {"learning_rate": rate})
        empty = tx.init(jax.tree.map(jnp.asarray, to_flax(p)))
        in_order = interop.from_keras(optimizer.variables, empty, to_flax, names=NAMES)
        by_name = {v.path: v for v in optimizer.variables}
        state = interop.from_keras(by_name, empty, to_flax, names=NAMES)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), in_order, state))
        p, state = here(tx, state, p, grads[K : 2 * K])
        fresh, _ = made(p)
        carried = interop.to_keras(state, fresh.variables, to_named, names=NAMES)
        got = steps(*made(p, carried), grads[2 * K :])
    assert_close(got, expected, dtype)


@pytest.mark.parametrize("kind", ["keras", "weights.h5"])
def test_a_saved_keras_file(kind, tmp_path):
    needed("keras", "h5py")
    import h5py
    import keras

    layers = [keras.layers.Input((4,)), keras.layers.Dense(3, name="a")]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.RMSprop(0.01, momentum=0.9, centered=True), "mse")
    model.train_on_batch(np.ones((2, 4)), np.ones((2, 3)))
    path = tmp_path / f"model.{kind}"
    model.save(path) if kind == "keras" else model.save_weights(path)
    data = path.read_bytes()
    if kind == "keras":
        data = zipfile.ZipFile(path).read("model.weights.h5")
    names = [v.path for v in model.trainable_variables]
    tx = dialects.keras(0.01, momentum=0.9, centered=True)
    tree = lambda named: {name.rpartition("/")[2]: x for name, x in named.items()}  # noqa: E731
    empty = tx.init({"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)})
    with h5py.File(io.BytesIO(data)) as file:
        state = interop.from_keras(file["optimizer/vars"], empty, tree, names=names)
    live = interop.from_keras(
        {v.path: v for v in model.optimizer.variables}, empty, tree, names=names
    )
    for saved, expected in zip(jax.tree.leaves(state), jax.tree.leaves(live), strict=True):
        np.testing.assert_array_equal(saved, expected)
    assert float(jnp.abs(optax.tree.get(state, "trace")["kernel"]).max()) > 0


@every_setting
def test_tf_keras_slots(setting):
    needed("tf_keras", "tensorflow")
    import tensorflow as tf
    import tf_keras

    options = {"learning_rate": RATE, **SETTINGS[setting]}
    options["epsilon"] = options.pop("eps", 1e-7)
    params, grads = problem(np.float32)
    generations = {
        dialects.keras2: tf_keras.optimizers.legacy.RMSprop,
        dialects.keras: lambda **kw: tf_keras.optimizers.RMSprop(jit_compile=False, **kw),
    }
    for dialect, make in generations.items():
        optimizer = make(**options)
        variables = [tf.Variable(params[name], name=f"layer/{name}") for name in NAMES]
        if hasattr(optimizer, "build"):
            optimizer.build(variables)

        def steps(grads, optimizer=optimizer, variables=variables):
            for g in grads:
                pairs = [(tf.constant(g[n]), v) for n, v in zip(NAMES, variables, strict=True)]
                optimizer.apply_gradients(pairs)
            return {n: v.numpy() for n, v in zip(NAMES, variables, strict=True)}

        p = steps(grads[:K])
        tx = dialect(**options)
        empty = tx.init(jax.tree.map(jnp.asarray, to_flax(p)))
        found = optimizer.variables
        slots = found() if callable(found) else found
        names = [f"layer/{name}" for name in NAMES]

        def tree(named):
            return to_flax({name.rpartition("/")[2]: x for name, x in named.items()})

        state = interop.from_keras({v.name: v for v in slots}, empty, tree, names=names)
        order = interop.from_keras([v.numpy() for v in slots], empty, tree, names=names)
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), order, state))
        got, _ = here(tx, state, p, grads[K : 2 * K])
        assert_close(got, steps(grads[K : 2 * K]), np.float32)


DENSE = {"one": (4, 3), "two": (3, 3)}


@contextlib.contextmanager
def dtype_policy(keras, name):
    keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy("float32")


def two_layers(keras, optimizer):
    """A trained model of Keras or tf_keras, of two layers with weights of equal shapes."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3, name=name) for name in DENSE]
    model = keras.Sequential([keras.layers.Input((4,)), *layers])
    model.compile(optimizer, "mse")
    for _ in range(2):
        model.train_on_batch(np.full((2, 4), 0.1), np.full((2, 3), 0.1))  # no loss scale overflows
    return model


def by_layer(named):
    """Its accumulators, from names with the layers' names in them."""

    def of(layer, word):
        (found,) = (x for n, x in named.items() if layer in n and word in n)
        return found

    return {name: {word: of(name, word) for word in ("kernel", "bias")} for name in DENSE}


def empty(tx):
    params = {n: {"kernel": jnp.zeros(s), "bias": jnp.zeros(s[1])} for n, s in DENSE.items()}
    return tx.init(params)


def assert_same(states):
    first, *others = states
    for state in others:
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(first), strict=True):
            np.testing.assert_array_equal(a, b)
    assert float(jnp.abs(optax.tree.get(first, "trace")["two"]["kernel"]).max()) > 0


@pytest.mark.parametrize("options", [
    {}, {"use_ema": True}, {"gradient_accumulation_steps": 2}, {"name": "gen_opt"},
    {"use_ema": True, "gradient_accumulation_steps": 2, "centered": True},
    {"use_ema": True, "gradient_accumulation_steps": 2, "policy": "mixed_float16"},
    {"centered": True, "gradient_accumulation_steps": 2}, {"policy": "mixed_float16"},
    {"policy": "float16"}, {"policy": "bfloat16"},
], ids=str)  # fmt: skip
def test_keras_variables_by_their_names(options, tmp_path):
    needed("keras", "h5py")
    import h5py
    import keras

    options = dict(options)
    with dtype_policy(keras, options.pop("policy", "float32")):
        model = two_layers(keras, keras.optimizers.RMSprop(0.01, momentum=0.9, **options))
    model.save(tmp_path / "model.h5")
    model.save(tmp_path / "model.keras")
    data = zipfile.ZipFile(tmp_path / "model.keras").read("model.weights.h5")
    every = model.optimizer.variables
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    names = [v.path for v in model.trainable_variables]
    centered = options.get("centered", False)
    like = empty(dialects.keras(0.01, momentum=0.9, centered=centered))
    with h5py.File(tmp_path / "model.h5") as h5, h5py.File(io.BytesIO(data)) as file:
        group = file["optimizer"].get("inner_optimizer", file["optimizer"])["vars"]
        sources = [every, {v.path: v for v in every}, inner.variables, h5["optimizer_weights"]]
        # In order there is no telling averaged weights alone from half an accumulation.
        told = not options.get("use_ema") or "gradient_accumulation_steps" in options
        sources += [group, [np.asarray(v.value) for v in inner.variables]] if told else []
        states = [interop.from_keras(x, like, by_layer, names=names) for x in sources]
        with pytest.raises(TypeError, match="give its group 'optimizer"):
            interop.from_keras(h5, like, by_layer, names=names)
        with pytest.raises(TypeError, match=r"give its group 'optimizer/.*vars'"):
            interop.from_keras(file, like, by_layer, names=names)
    assert_same(states)
    assert int(states[0][0].count) == int(np.asarray(inner._iterations.value))
    slots = {v.path.rpartition("/")[2]: np.asarray(v.value) for v in every}
    kind, field = ("average_gradient", "mu") if centered else ("velocity", "nu")
    for layer in DENSE:
        (kernel,) = (x for n, x in slots.items() if n.endswith(f"{layer}_kernel_{kind}"))
        got = optax.tree.get(states[0], field)[layer]["kernel"]
        np.testing.assert_array_equal(got, kernel.astype(np.float32))
    plain = [np.asarray(v.value) for v in every]
    if len(every) != len(inner.variables):
        with pytest.raises(ValueError, match=r"optimizer\.inner_optimizer\.variables"):
            interop.from_keras(plain, like, by_layer, names=names)
    elif not told:
        with pytest.raises(ValueError, match=r"use_ema.* by name, `\{v\.path: v"):
            interop.from_keras(plain, like, by_layer, names=names)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("before", [
    {"use_ema": True}, {"gradient_accumulation_steps": 2},
    {"use_ema": True, "gradient_accumulation_steps": 2},
], ids="-".join)  # fmt: skip
def test_an_archive_with_what_comes_before_the_velocities(
    before, policy, momentum, centered, tmp_path
):
    needed("keras", "h5py")
    import keras

    from optax_rmsprop import cli

    def made(carried):
        options = {"momentum": momentum, "centered": centered, **before}
        model = two_layers(keras, keras.optimizers.RMSprop(0.01, **options))
        if not carried:  # as new, but for what is nobody's to carry
            for v in model.optimizer.variables:
                own = v.path.endswith(("velocity", "momentum", "average_gradient"))
                v.assign(np.zeros(v.shape)) if own else None
        model.save(tmp_path / f"{carried}.keras")
        return model

    with dtype_policy(keras, policy):
        model, like = made(True), made(False)
        source, npz, back = (tmp_path / n for n in ("True.keras", "a.npz", "back.keras"))
        assert cli.main(["convert", str(source), "--to", str(npz)]) == 0
        told = ["--to", str(back), "--like", str(tmp_path / "False.keras")]
        assert cli.main(["convert", str(npz), *told]) == 0
        loaded = keras.models.load_model(back)
    for got, expected, old in zip(
        *(x.optimizer.variables for x in (loaded, model, like)), strict=True
    ):
        own = old.path.endswith(("velocity", "momentum", "average_gradient"))
        wanted = expected if own or old.path.endswith("iteration") else old
        np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=1e-5, atol=1e-7)
        assert not own or np.any(np.asarray(got))


def to_layers(names):
    """The way back of `by_layer`."""
    return lambda tree: {n: tree[n.split("/")[-2]][n.split("/")[-1]] for n in names}


@pytest.mark.parametrize("policy", ["mixed_float16", "float16", "bfloat16"])
def test_keras_in_half_precision_and_back(policy):
    needed("keras")
    import keras

    with dtype_policy(keras, policy):
        model = two_layers(keras, keras.optimizers.RMSprop(0.01, momentum=0.9, use_ema=True))
    names = [v.path for v in model.trainable_variables]
    like = empty(dialects.keras(0.01, momentum=0.9))
    variables = model.optimizer.variables
    state = interop.from_keras(variables, like, by_layer, names=names)
    back = interop.to_keras(state, variables, to_layers(names), names=names)
    for variable, value in zip(variables, back, strict=True):
        old = np.asarray(variable)
        assert value.dtype == old.dtype and value.flags.writeable
        np.testing.assert_array_equal(value, old)
        variable.assign(value)


OTHERS = ["Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "Ftrl", "Lamb", "Lion"]
OTHERS += ["Muon", "Nadam", "SGD"]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_another_keras_optimizer_is_refused(name, momentum):
    needed("keras", "tf_keras", "tensorflow")
    import keras
    import tensorflow as tf
    import tf_keras

    like = empty(dialects.keras(0.01, momentum=momentum))
    refused = pytest.raises(
        TypeError, match=r"from_keras: (no variables of Keras's RMSprop|.* Adam)"
    )
    makers = [(keras, getattr(keras.optimizers, name, None), {"name": x}) for x in (None, "gen")]
    for module in (tf_keras.optimizers, tf_keras.optimizers.legacy):
        makers.append((tf_keras, getattr(module, name, None), {}))
    for module, make, options in makers:
        if make is None:
            continue
        optimizer = make(learning_rate=0.1, **options)
        if module is keras:
            variables = [keras.Variable(np.ones(3), name=n) for n in ("one_kernel", "two_kernel")]
            optimizer.build(variables)
        else:
            variables = [tf.Variable(np.ones(3), name=n) for n in ("one/kernel", "two/kernel")]
            optimizer.apply_gradients([(tf.ones(3, x.dtype), x) for x in variables])
        found = optimizer.variables
        found = found() if callable(found) else found
        with refused:
            interop.from_keras(found, like, by_layer)
        with refused:
            interop.from_keras({getattr(v, "path", v.name): v for v in found}, like, by_layer)


@pytest.mark.parametrize("generation", ["legacy", "new"])
@pytest.mark.parametrize("options", [
    {}, {"centered": True}, {"name": "gen"}, {"decayed": True}, {"mixed": True},
], ids=str)  # fmt: skip
def test_checkpoints_of_tensorflow_2(generation, options, tmp_path):
    needed("tf_keras", "tensorflow")
    import tensorflow as tf
    import tf_keras

    options = {"learning_rate": 0.01, "momentum": 0.9, **options}
    centered = options.get("centered", False)
    if decayed := options.pop("decayed", False):
        options["learning_rate"] = tf_keras.optimizers.schedules.ExponentialDecay(0.01, 1, 0.5)
    policy = "mixed_float16" if options.pop("mixed", False) else "float32"
    legacy = generation == "legacy"
    make = tf_keras.optimizers.legacy.RMSprop if legacy else tf_keras.optimizers.RMSprop
    with dtype_policy(tf_keras, policy):
        model = two_layers(tf_keras, make(**options))
    found = model.optimizer.variables
    found = found() if callable(found) else found
    names = [v.name for v in model.trainable_variables]
    other = tf_keras.optimizers.RMSprop(0.5)
    other.build(model.trainable_variables)
    model.save_weights(str(tmp_path / "weights"))
    model.save(str(tmp_path / "saved"))
    paths = [tmp_path / "weights", tmp_path / "saved" / "variables" / "variables"]
    paths += [
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "one")),
        tf.train.Checkpoint(gen=model.optimizer, dis=other, model=model).save(
            str(tmp_path / "two")
        ),
    ]
    tx = (dialects.keras2 if legacy else dialects.keras)(0.01, momentum=0.9, centered=centered)
    live = {v.name: v for v in found}
    states = [interop.from_keras(live, empty(tx), by_layer, names=names, learning_rate=0.01)]
    for path in paths:
        reader = tf.train.load_checkpoint(str(path))
        saved = {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map()}
        several = {"optimizer": "gen"} if "two" in str(path) else {}
        for given in (names, None):
            state = interop.from_keras(saved, empty(tx), by_layer, names=given, **several)
            rate = 0.005 if decayed and not legacy else 0.01
            np.testing.assert_allclose(optax.tree.get(state, "last_learning_rate"), rate)
            states.append(optax.tree.set(state, last_learning_rate=jnp.float32(0.01)))
        plain = [name.removesuffix(":0") for name in names]
        back = interop.to_keras(state, saved, to_layers(plain), **several)
        for key, value in back.items():
            np.testing.assert_allclose(value, saved[key], rtol=1e-6)
    assert_same([optax.tree.set(x, last_learning_rate=jnp.float32(0.01)) for x in states])
    with pytest.raises(ValueError, match=r"give optimizer=, one of \['dis', 'gen'\]"):
        interop.from_keras(saved, empty(tx), by_layer)


@pytest.mark.parametrize("centered", [False, True])
def test_tensorflow1_optimizers_with_names(centered, tmp_path):
    """Two optimizers of one variable, one of them with a name; and one that is partitioned."""
    needed("tensorflow")
    import tensorflow as tf

    v1 = tf.compat.v1
    ones = np.ones((2, 2), np.float32)
    with tf.Graph().as_default():
        w = v1.get_variable("w", initializer=ones)
        parts = v1.get_variable(
            "parts", [4, 2], initializer=v1.ones_initializer(),
            partitioner=v1.fixed_size_partitioner(2),
        )  # fmt: skip
        steps = []
        for name, size in (("gen_rmsprop", 2.0), ("RMSProp", 3.0), ("RMSProp", 4.0)):
            optimizer = v1.train.RMSPropOptimizer(
                0.5, decay=0.75, momentum=0.9, epsilon=2.0, centered=centered, name=name
            )
            loss = size * (v1.reduce_sum(w) + v1.reduce_sum(tf.convert_to_tensor(parts)))
            steps.append(optimizer.minimize(loss, v1.train.get_or_create_global_step()))
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(steps)
            path = v1.train.Saver().save(session, str(tmp_path / "model"))
    reader = tf.train.load_checkpoint(path)
    saved = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    params = {"w": jnp.ones((2, 2)), "parts": jnp.ones((4, 2))}
    tx = dialects.tensorflow1(0.5, decay=0.75, momentum=0.9, epsilon=2.0, centered=centered)
    like = tx.init(params)
    second = "RMSProp_3" if centered else "RMSProp_2"
    for slot, size in (("gen_rmsprop", 2.0), ("RMSProp", 3.0), (second, 4.0)):
        grads = jax.tree.map(lambda p, size=size: jnp.full_like(p, size), params)
        _, expected = tx.update(grads, like, params)
        state = interop.from_tensorflow1(saved, like, dict, slot=slot, count=1)
        for ours, made in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, made, rtol=1e-6)
        back = interop.to_tensorflow1(state, saved, dict, slot=slot)
        assert back.keys() == saved.keys()
        for key in saved.keys() - {"global_step"}:
            np.testing.assert_allclose(back[key], saved[key], rtol=1e-6)
    with pytest.raises(ValueError, match=r"give slot=, of \['RMSProp', 'gen_rmsprop'\]"):
        interop.from_tensorflow1(saved, like, dict)


@every_setting
@scheduled_or_not
@both_widths
def test_tensorflow1_there_and_back(setting, scheduled, dtype):
    needed("tensorflow")
    import tensorflow as tf

    options = {"learning_rate": RATE, **SETTINGS[setting]}
    options["epsilon"] = options.pop("eps", 1e-10)
    rounded = {k: float(np.float32(v)) if isinstance(v, float) else v for k, v in options.items()}
    rounded["decay"] = float(np.float32(0.9))
    table = TABLE.astype(np.float32).astype(float)
    params, grads = problem(dtype)

    class Run:
        def __init__(self, values, start=0):
            self.at = start
            self.variables = [tf.Variable(values[name], name=name) for name in NAMES]
            rate = (lambda: float(TABLE[self.at])) if scheduled else RATE
            self.optimizer = tf.compat.v1.train.RMSPropOptimizer(
                **options | {"learning_rate": rate}
            )
            self.optimizer._create_slots(self.variables)

        def load(self, carried):
            for slot in self.optimizer.variables():
                slot.assign(carried[slot.name])

        def steps(self, grads):
            for g in grads:
                pairs = zip(NAMES, self.variables, strict=True)
                self.optimizer.apply_gradients([(tf.constant(g[n]), v) for n, v in pairs])
                self.at += 1
            return {n: v.numpy() for n, v in zip(NAMES, self.variables, strict=True)}

        def slots(self):
            return {v.name: v.numpy() for v in self.optimizer.variables()}

    with their_own_world():
        expected = Run(params).steps(grads)
        first = Run(params)
        p = first.steps(grads[:K])
        rate = (lambda count: jnp.asarray(table)[count]) if scheduled else rounded["learning_rate"]
        tx = dialects.tensorflow1(**rounded | {"learning_rate": rate})
        empty = tx.init(jax.tree.map(jnp.asarray, to_flax(p)))
        state = interop.from_tensorflow1(first.slots(), empty, to_flax, count=K)
        p, state = here(tx, state, p, grads[K : 2 * K])
        last = Run(p, 2 * K)
        last.load(interop.to_tensorflow1(state, last.slots(), to_named))
        got = last.steps(grads[2 * K :])
    assert_close(got, expected, dtype)


def test_a_checkpoint_of_a_tensorflow1_graph(tmp_path):
    needed("tensorflow")
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default():
        w = v1.get_variable("layer/w", initializer=np.ones((2, 2), np.float32))
        optimizer = v1.train.RMSPropOptimizer(
            0.5, decay=0.75, momentum=0.9, epsilon=2.0, centered=True
        )
        step = optimizer.apply_gradients(
            [(tf.constant(np.full((2, 2), 5.0, np.float32)), w)],
            global_step=v1.train.get_or_create_global_step(),
        )
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(step)
            path = v1.train.Saver().save(session, str(tmp_path / "model"))
    reader = tf.train.load_checkpoint(path)
    saved = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    params = {"w": jnp.ones((2, 2))}
    tx = dialects.tensorflow1(0.5, decay=0.75, momentum=0.9, epsilon=2.0, centered=True)
    state = interop.from_tensorflow1(saved, tx.init(params), lambda named: {"w": named["layer/w"]})
    _, expected = tx.update({"w": jnp.full((2, 2), 5.0)}, tx.init(params), params)
    for ours, made in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, made, rtol=1e-6)


def test_a_sharded_target_stays_sharded():
    needed("torch")
    import torch

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    p = torch.nn.Parameter(torch.ones(16, 4))
    optimizer = torch.optim.RMSprop([("w", p)], momentum=0.9)
    p.grad = torch.arange(64.0).reshape(16, 4)
    optimizer.step()
    params = {"w": jax.device_put(jnp.ones((16, 4)), NamedSharding(mesh, P("data")))}
    tx = dialects.torch(momentum=0.9)
    state = interop.from_torch(optimizer.state_dict(), tx.init(params), lambda named: named)
    for field in ("nu", "trace"):
        array = optax.tree.get(state, field)["w"]
        assert array.sharding == params["w"].sharding
        assert array.addressable_shards[0].data.shape == (2, 4)
    saved = optimizer.state_dict()["state"][0]
    np.testing.assert_array_equal(optax.tree.get(state, "nu")["w"], saved["square_avg"])
    back = interop.to_torch(state, optimizer.state_dict(), lambda tree: tree)
    np.testing.assert_array_equal(back["state"][0]["momentum_buffer"], saved["momentum_buffer"])


def test_a_torch_network_by_its_layout():
    """A convolution, a normalisation, a flatten and a linear layer, in PyTorch and in Flax."""
    needed("torch", "flax")
    import torch
    from flax import nnx

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.norm = torch.nn.LayerNorm(8)
            self.dense = torch.nn.Linear(8 * 4 * 4, 5)

        def forward(self, x):
            x = self.conv(x).permute(0, 2, 3, 1)
            x = self.norm(x).permute(0, 3, 1, 2)
            return self.dense(torch.flatten(torch.tanh(x), 1))

    class Ours(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), padding="SAME", rngs=rngs)
            self.norm = nnx.LayerNorm(8, epsilon=1e-5, rngs=rngs)
            self.dense = nnx.Linear(4 * 4 * 8, 5, rngs=rngs)

        def __call__(self, x):
            x = jnp.tanh(self.norm(self.conv(x)))
            return self.dense(x.reshape(x.shape[0], -1))

    torch.manual_seed(0)
    theirs = Theirs()
    with jax.numpy_dtype_promotion("standard"):
        ours = Ours(nnx.Rngs(0))
        both = interop.layout(nnx.state(ours, nnx.Param), flattened={"dense": (8, 4, 4)})
        named = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
        nnx.update(ours, both.to_flax(named))
        x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
        got = ours(jnp.asarray(x.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(got, theirs(torch.tensor(x)).detach().numpy(), atol=1e-5)
    back = both.to_torch(nnx.state(ours, nnx.Param))
    assert back.keys() == named.keys()
    for name in named:
        np.testing.assert_array_equal(back[name], named[name])
