"""What the package is as a thing: its floors, its imports, its names, and its objects as values."""

import ast
import copy
import functools
import importlib.metadata
import importlib.util
import inspect
import json
import pathlib
import pickle
import re
import subprocess
import sys
from collections.abc import Set

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from packaging.version import Version

import optax_rmsprop as ours
from optax_rmsprop import dialects, interop, storage
from tests.cases import CASES, Everywhere, cases
from tests.test_dialects import CHAINS, DIALECTS

pytestmark = pytest.mark.api

PACKAGE = pathlib.Path(ours.__file__).parent
# By dotted name, "interop.torch"; a subpackage's own `__init__` has the subpackage's name.
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.glob("**/*.py"))
}

# A module imports only from floors below its own. Every module has one.
FLOORS = {
    "_settable": -1,
    "_jax": 0,
    "_rule": 0,
    "_formats": 1,
    "_tree": 1,
    "denominators": 1,
    "_run": 2,
    "_link": 3,
    "links": 4,
    "_framework_links": 4,
    "_schedules": 4,
    "storage": 4,
    "sharding": 4,
    "_rmsprop": 5,
    "interop._checkpoints": 5,
    "interop._orders": 5,
    "interop._variables": 5,
    "interop._arrays": 5,
    "interop._survey": 6,
    "interop._optax": 7,
    "interop._states": 8,
    "dialects": 9,
    "interop.keras": 9,
    "interop.layout": 9,
    "interop.tensorflow1": 9,
    "interop.torch": 9,
    "interop.transfer": 9,
    "interop": 10,
    "recipes": 11,
    "recording": 11,
    "retuning": 11,
    "probe._model": 11,
    "probe._calls": 12,
    "probe._progress": 11,
    "probe._report": 11,
    "probe._frameworks": 11,
    "probe._fit": 12,
    "probe._optimizers": 13,
    "probe._search": 13,
    "probe._others": 14,
    "probe._finish": 14,
    "probe._conclude": 15,
    "probe._log": 16,
    "probe._design": 16,
    "probe": 17,
    "compare._report": 20,
    "compare._records": 20,
    "compare._layouts": 21,
    "compare._gradients": 21,
    "compare._optimizers": 21,
    "compare._sides": 21,
    "compare._accounts": 22,
    "compare._moves": 22,
    "compare._words": 23,
    "compare._rules": 24,
    "compare._compare": 25,
    "compare": 26,
    "__init__": 27,
    "cli._guard": 32,
    "cli._models": 32,
    "cli._calls": 33,
    "cli._saved": 34,
    "cli._provenance": 35,
    "cli._ours": 36,
    "cli._keras": 36,
    "cli._tensorflow": 36,
    "cli._torch": 36,
    "cli._inspect": 37,
    "cli._open": 37,
    "cli._layouts": 37,
    "cli._bytes": 38,
    "cli._convert": 38,
    "cli._show": 39,
    "cli._commands": 40,
    "cli": 41,
    "__main__": 42,
}
OUTSIDE = {"jax", "optax", "numpy"}
# Those of the extra, which nothing that is imported with the package may import.
COMMANDS = {"cli._commands": {"tyro"}, "cli._show": {"rich"}}
FACTORIES = {name: f for name, f in vars(ours).items() if inspect.isfunction(f)} | {
    f"dialects.{name}": f for name, f in DIALECTS.items()
}
STATES = {name for name in vars(ours) if inspect.isclass(getattr(ours, name))}
HEAVY = {
    "tyro",
    "rich",
    "h5py",
    "safetensors",
    "flax",
    "chex",
    "orbax",
    "equinox",
    "matplotlib",
    "torch",
    "keras",
    "tensorflow",
    "scipy",
}


def parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(name: str, tree: ast.Module, known: Set[str]) -> tuple[set[str], set[str]]:
    """The package's modules that a module imports, anywhere in it, and the other packages.

    A module of a subpackage brings the subpackage with it, for those who are not in it themselves.
    """
    inside, outside = set[str](), set[str]()
    subpackages = {module.rpartition(".")[0] for module in known} - {""}
    own = name if name in subpackages else name.rpartition(".")[0]
    home = f"{PACKAGE.name}.{own}".rstrip(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(str(node.module).split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            start = importlib.util.resolve_name("." * node.level + (node.module or ""), home)
            names = {f"{start}.{alias.name}".partition(".")[2] for alias in node.names}
            names = {"__init__" if name == "__version__" else name for name in names}
            inside |= {x if x in known else start.partition(".")[2] or x for x in names}
    if PACKAGE.name in outside:
        raise AssertionError("the package is imported relatively, so that the floors are seen")
    for subpackage in subpackages:
        if any(module.startswith(f"{subpackage}.") for module in inside - {name}):
            inside |= {subpackage} - {own}
    return inside, outside


def broken_floors(sources: dict[str, ast.Module], floors: dict[str, int]) -> list[str]:
    found = [f"{name} has no floor" for name in sources.keys() ^ floors.keys()]
    for name in sources.keys() & floors.keys():
        inside, outside = imports(name, sources[name], floors.keys())
        low = {module for module, floor in floors.items() if floor < floors[name]}
        found += [f"{name} imports {module}" for module in inside - low]
        known = OUTSIDE | COMMANDS.get(name, set()) | sys.stdlib_module_names
        found += [f"{name} imports {module}" for module in outside - known]
    return found


def test_a_module_imports_only_from_lower_floors():
    assert broken_floors({name: parsed(path) for name, path in MODULES.items()}, FLOORS) == []


@pytest.mark.parametrize(
    ["module", "source", "found"],
    [
        ("_rule", "from .links import trace", "_rule imports links"),
        ("_tree", "def f():\n    from . import links", "_tree imports links"),
        ("_tree", "from . import later", "_tree imports later"),
        ("interop.torch", "from . import keras", "interop.torch imports interop.keras"),
        ("interop.torch", "from .keras import f", "interop.torch imports interop.keras"),
        ("interop._states", "from ..interop import f", "interop._states imports interop"),
        ("interop._states", "from .. import interop", "interop._states imports interop"),
        ("dialects", "from .interop._states import read", "dialects imports interop"),
        ("interop", "import torch", "interop imports torch"),
        ("links", "import flax.linen as nn", "links imports flax"),
        ("cli._open", "import rich.table", "cli._open imports rich"),
        ("__init__", "from . import cli", "__init__ imports cli"),
        ("links", "from . import __version__", "links imports __init__"),
        ("links", "from jaxlib import xla_client", "links imports jaxlib"),
        ("_new", "", "_new has no floor"),
    ],
)
def test_the_search_of_the_floors_can_fail(module, source, found):
    sources = {name: ast.parse("") for name in FLOORS} | {module: ast.parse(source)}
    assert broken_floors(sources, FLOORS) == [found]


def fragile(tree: ast.Module) -> set[str]:
    """The parts of JAX below `jax.numpy` and its like, whose names move from version to version."""
    parts = r"jax(lib|\.(_src|core|dtypes|experimental|extend|interpreters|typeof)\b)"
    written = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            written |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            written |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in written if re.match(parts, name)}


def test_one_module_has_the_names_of_jax_that_move():
    assert {name for name, path in MODULES.items() if fragile(parsed(path))} == {"_jax"}


@pytest.mark.parametrize(
    "source",
    [
        "import jax.experimental.shard_map",
        "from jax import core",
        "from jax.core import Tracer",
        "def f(x):\n    return jax.dtypes.canonicalize_dtype(x)",
        "import jaxlib",
    ],
)
def test_the_search_for_names_that_move_can_fail(source):
    assert fragile(ast.parse(source))


def roots(tree: ast.Module) -> list[str]:
    """Everything that takes a root: a name that says so, or a power of a half."""
    found = []
    for node in ast.walk(tree):
        name = getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "name", "")
        if isinstance(name, str) and re.search(r"^_*r?sqrt$|^hypot$", name):
            found.append(name)
        power = node.right if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) else None
        if isinstance(power, ast.Constant) and not float(power.value).is_integer():
            found.append(ast.unparse(node))
    return found


def test_one_module_takes_a_root():
    rooted = {name for name, path in MODULES.items() if roots(parsed(path))}
    # What reads a recorded run has the rules in NumPy, and makes no update.
    assert {name for name in rooted if not name.startswith(("probe.", "compare."))} == {"_rule"}


def test_the_search_for_roots_can_fail():
    text = "a = jnp.sqrt(x)\nb = jax.lax.rsqrt(x)\nc = x ** 0.5\nfrom math import sqrt"
    assert len(roots(ast.parse(text))) == 4
    assert roots(ast.parse("eps_in_sqrt_is_an_argument(x ** 2)")) == []


@pytest.mark.parametrize("package", ["__init__", "interop"])
def test_init_is_reexports_and_a_version(package):
    head, *rest = parsed(MODULES[package]).body
    assert isinstance(head, ast.Expr) and isinstance(head.value, ast.Constant)
    if package == "__init__":
        assert ast.unparse(rest.pop()).startswith("__version__ = ")
    for node in rest:
        assert isinstance(node, ast.ImportFrom) and node.level == 1, ast.unparse(node)
        assert [(a.name, a.asname) for a in node.names] == [(a.name, a.name) for a in node.names]


def test_the_public_names_are_these():
    public = {name for name in vars(ours) if not name.startswith("_")}
    assert public - set(MODULES) == {n for n in FACTORIES if "." not in n} | STATES
    assert {n for n in public & set(MODULES) if n.startswith("_")} == set()
    assert {name for name in STATES if name.startswith("_")} == set()
    # A public factory without a row in the table escapes every contract test, unless it is shown
    # to be the same links as one that has.
    made = {getattr(case.make, "func", case.make) for case in CASES}
    by_row = {f.__name__.lstrip("_") for f in made} | {"chain"}  # which others are made with
    by_links = {name.partition("-")[0] for name in CHAINS}
    assert by_row | by_links == {name.rpartition(".")[2] for name in FACTORIES}
    assert {name.rpartition(".")[2] for name in FACTORIES if "dialects." in name} == by_links


def test_importing_the_package_adds_no_package_but_itself():
    program = "import json, sys, optax{}; print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    alone, ours_too = (
        set(json.loads(subprocess.check_output([sys.executable, "-c", program.format(more)])))
        for more in ("", ", optax_rmsprop")
    )
    added = ours_too - alone - sys.stdlib_module_names
    assert added == {"optax_rmsprop"}
    assert added.isdisjoint(HEAVY)


def test_the_version_is_one_and_is_canonical():
    assert str(Version(ours.__version__)) == ours.__version__
    try:
        installed = importlib.metadata.version("optax-rmsprop")
    except importlib.metadata.PackageNotFoundError:
        return  # run from a checkout, which has no metadata that could disagree
    assert installed == ours.__version__


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("name", sorted(name for name in FACTORIES if "dialects." not in name))
def test_every_factory_documents_what_it_does_and_shows_it(name):
    doc = inspect.getdoc(FACTORIES[name]) or ""
    head = doc.splitlines()[0]
    assert len(head) <= 80 and head.endswith(".")
    sections = re.findall(r"^(\w+(?:, \w+)*):", doc, re.MULTILINE)
    assert {"Returns", "Example"} <= set(sections)
    assert ">>> " in doc.partition("Example:")[2]
    # A parameter is documented once: here, or by the factory that this one names.
    described = set(re.findall(r"(\w+)(?=[\w, ]*: )", doc.partition("Args:")[2]))
    missing = inspect.signature(FACTORIES[name]).parameters.keys() - described
    assert not missing or re.search(r"[Aa]rguments?.* `\w+`|As in `\w+`, as are", doc), missing


def documented(doc: str) -> list[tuple[str, str]]:
    """The parameters that a docstring's `Args` describe, each with its text."""
    section = re.search(r"^Args:\n((?:    .*\n)+)", doc, re.MULTILINE)
    entries = re.findall(r"^    (\S.*?): (.*)", section[1], re.MULTILINE) if section else []
    return [(name, text) for names, text in entries for name in names.split(", ")]


def undocumented(doc: str, parameters: set[str], docs: dict[str, str]) -> set[str]:
    """The parameters that neither this docstring nor the dialect that it names describes."""
    here, elsewhere = set[str](), set[str]()
    for name, text in documented(doc):
        other = re.match(r"As in `(\w+)`", text)
        found = not other or not undocumented(docs.get(other[1], ""), {name}, docs)
        (here if found else elsewhere).add(name)
    return parameters - here


def unsaid(doc: str, parameters: set[str], docs: dict[str, str]) -> list[str]:
    """What a dialect's docstring lacks; what all of them do is said once, by their module."""
    head, entries = doc.partition("\n")[0], [name for name, _ in documented(doc)]
    found = [] if len(head) <= 80 and head.endswith(".") else ["a first line"]
    lines = {"formula": r"^    .* ← (?s:.*)^Args:$", "source": r"^Source: \S.*\.$"}
    found += [what for what, line in lines.items() if not re.search(line, doc, re.MULTILINE)]
    found += [f"{name} is no parameter" for name in sorted({*entries} - parameters)]
    found += [f"{name} twice" for name in sorted({*entries}) if entries.count(name) > 1]
    return found + sorted(undocumented(doc, parameters, docs))


DOCS = {name: inspect.getdoc(f) or "" for name, f in DIALECTS.items()}


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_every_dialect_documents_its_rule_its_arguments_and_its_source(name):
    assert unsaid(DOCS[name], {*inspect.signature(DIALECTS[name]).parameters}, DOCS) == []


@pytest.mark.parametrize(
    ["old", "new", "found"],
    [
        ("starts at 0.", "starts at 0", ["a first line"]),
        ("rule and defaults", "rule and defaults" + 30 * "!", ["a first line"]),
        ("←", "is", ["formula"]),
        ("Source: Sonnet", "Sonnet", ["source"]),
        ("epsilon, centered: As", "epsilon: As", ["centered"]),
        ("epsilon, centered: As", "epsilon, centred: As", ["centred is no parameter", "centered"]),
        ("epsilon, centered: As", "epsilon, centered, decay: As", ["decay twice"]),
        ("`tensorflow1`", "`nowhere`", sorted(inspect.signature(dialects.sonnet).parameters)),
        ("`tensorflow1`", "`torch`", ["decay", "epsilon", "learning_rate"]),
    ],
)
def test_the_search_for_what_a_dialect_does_not_say_can_fail(old, new, found):
    doc = DOCS["sonnet"].replace(old, new)
    assert unsaid(doc, {*inspect.signature(dialects.sonnet).parameters}, DOCS) == found


def test_what_all_dialects_return_and_raise_is_said_once_by_their_module():
    said = inspect.getdoc(dialects) or ""
    states = [dialect.init(jnp.ones(1)) for dialect, _ in CHAINS.values()]
    is_state = lambda state: hasattr(state, "_fields")  # noqa: E731
    parts = jax.tree.leaves(states, is_leaf=is_state)
    assert len({type(part) for part in parts}) == 6
    for words in {f"`{type(part).__name__}`" for part in parts} | {"ValueError", "TypeError"}:
        assert words in said
    for name, doc in DOCS.items():
        assert not re.search(r"^(Returns|Raises):", doc, re.MULTILINE), name


@pytest.mark.parametrize(
    "name", ["from_torch", "to_torch", "from_keras", "to_keras", "from_tensorflow1",
             "to_tensorflow1", "transfer", "layout"],
)  # fmt: skip
def test_every_conversion_documents_what_it_does_and_shows_it(name):
    function = getattr(interop, name)
    doc = inspect.getdoc(function) or ""
    assert len(doc.splitlines()[0]) <= 90 and doc.splitlines()[0].endswith((".", "3's.", "2's."))
    assert {"Args", "Returns", "Raises", "Example"} <= set(
        re.findall(r"^(\w+):", doc, re.MULTILINE)
    )
    described = set(re.findall(r"(\w+)(?=[\w, ]*: )", doc.partition("Args:")[2]))
    assert inspect.signature(function).parameters.keys() <= described


@pytest.mark.parametrize("name", sorted(STATES))
def test_every_state_documents_itself_and_each_field(name):
    state = getattr(ours, name)
    assert (inspect.getdoc(state) or "").startswith("The state of `")
    lines = inspect.getsource(state).splitlines()
    for field in state._fields:
        (line,) = (line for line in lines if re.match(rf"\s+{field}: ", line))
        assert "  # " in line


@cases()
def test_transformations_of_equal_arguments_are_equal_and_hash_alike(case):
    assert case() == case()
    assert not case() != case()
    assert hash(case()) == hash(case())
    assert len({case(), case()}) == 1
    for name, value in case.hyper.items():
        assert case(**{name: value / 2}) != case()


def test_no_two_rows_of_the_table_are_equal():
    assert len({case() for case in CASES}) == len(CASES)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.asarray, jnp.asarray])
@cases()
def test_array_hyperparameters_compare_hash_and_are_static_too(case, kind):
    def made():
        return case(**{name: kind(value) for name, value in case.hyper.items()})

    assert made() == made()
    assert hash(made()) == hash(made())
    step = jax.jit(lambda tx, p: tx.update(p, tx.init(p), p)[0], static_argnums=0)
    chex.assert_trees_all_equal_shapes_and_dtypes(step(made(), jnp.ones(2)), jnp.ones(2))


def test_a_mask_that_is_a_tree_compares_hashes_and_is_static():
    def made(**mask):
        return ours.rmspropw(0.1, mask={"w": {"a": True}, "b": False} | mask)

    assert made() == made() and hash(made()) == hash(made())
    assert made() != made(b=True)
    params = {"w": {"a": jnp.ones(2)}, "b": jnp.ones(2)}
    step = jax.jit(lambda tx, p: tx.update(p, tx.init(p), p)[0], static_argnums=0)
    chex.assert_trees_all_equal_shapes_and_dtypes(step(made(), params), params)


@cases()
def test_a_schedule_is_equal_to_itself(case):
    schedules = {name: optax.constant_schedule(value) for name, value in case.hyper.items()}
    assert case(**schedules) == case(**schedules)
    assert hash(case(**schedules)) == hash(case(**schedules))
    assert case(**schedules) != case()


@pytest.mark.parametrize("through", [lambda tx: pickle.loads(pickle.dumps(tx)), copy.deepcopy])
@cases()
def test_a_copy_is_equal_and_updates_alike(case, through):
    tx = case()
    twin = through(tx)
    assert twin == tx and type(twin) is type(tx) and hash(twin) == hash(tx)
    params = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array(0.5)}
    state = twin.init(params)
    chex.assert_trees_all_equal(state, tx.init(params))
    chex.assert_trees_all_equal(
        twin.update(params, state, params), tx.update(params, tx.init(params), params)
    )


@cases()
def test_a_transformation_is_shown_as_the_call_that_makes_it(case):
    tx = case()
    text = repr(tx)
    assert text != repr(tx._replace(update=lambda g, state, params=None: (g, state)))
    # Public names are enough, but for what the user gave: a function is shown by its name.
    public = {name: value for name, value in vars(ours).items() if not name.startswith("_")}
    options = getattr(case.make, "keywords", {}).values()
    theirs = {option.__name__: option for option in options if callable(option)}
    assert eval(text, public | theirs | {"Everywhere": Everywhere}) == tx
    for value in case.hyper.values():
        assert repr(value) in text


@cases()
def test_a_static_argument_compiles_once(case):
    chex.clear_trace_counter()

    @functools.partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=1)
    def step(tx, params):
        return tx.update(params, tx.init(params), params)

    params = jnp.ones(2)
    first = step(case(), params)
    chex.assert_trees_all_equal(step(case(), params), first)
    chex.assert_trees_all_equal(step(pickle.loads(pickle.dumps(case())), params), first)


def test_rmsprop_takes_the_arguments_of_optaxs_with_the_same_defaults():
    def arguments(factory):
        return [(p.name, p.kind, p.default) for p in inspect.signature(factory).parameters.values()]

    theirs, plain, decayed = map(arguments, (optax.rmsprop, ours.rmsprop, ours.rmspropw))
    assert plain == theirs
    assert decayed[: len(plain)] == plain
    adamw = {p.name: p.default for p in inspect.signature(optax.adamw).parameters.values()}
    extra = {name: default for name, _, default in decayed[len(plain) :]}
    assert extra == {name: adamw[name] for name in ("weight_decay", "mask")}
    assert arguments(ours.scale_by_stddev) == arguments(ours.scale_by_rms)
    assert arguments(ours.scale_by_rms)[:2] == arguments(optax.scale_by_rms)[:2]


def test_every_annotation_is_there():
    for name in FACTORIES:
        signature = inspect.signature(FACTORIES[name])
        assert signature.return_annotation is optax.GradientTransformationExtraArgs
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter.name)


@cases()
def test_optax_knows_it_for_a_transformation(case):
    tx = case()
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    assert optax.with_extra_args_support(tx) is tx
    assert tx == tuple(tx) == (tx.init, tx.update)


@cases()
def test_update_has_a_name_and_a_signature(case):
    tx = case()
    assert list(inspect.signature(tx.update).parameters) == [
        "updates", "state", "params", "extra_args",
    ]  # fmt: skip
    params = jnp.ones((8, 8))
    step = jax.jit(tx.update, donate_argnames=("state",))
    lowered = step.lower(params, state=tx.init(params), params=params)
    assert f"module @jit_{tx.update.__name__} " in lowered.as_text()
    assert re.fullmatch(r"[a-z_]+_update", tx.update.__name__)
    state = tx.init(params)
    step(params, state=state, params=params)
    # What is not read, such as the last rate, is not donated either.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state) if leaf.ndim)


def test_a_plain_transformation_inside_leaves_equal_calls_equal():
    plain = optax.scale_by_adam()
    clip = optax.clip_by_global_norm(1.0)
    for make in (
        lambda: ours.chain(plain, ours.trace(0.9)),
        lambda: storage.stored_as(plain, storage.uint16()),
        lambda: dialects.paddle(0.1, grad_clip=clip),
    ):
        assert make() == make() and hash(make()) == hash(make()) and len({make(), make()}) == 1


def test_in_half_precision_the_parts_add_up_to_the_whole():
    links = ours.scale_by_rms(), ours.scale_by_learning_rate(1e-3), ours.trace(0.9)
    whole, parts, loose = (
        ours.rmsprop(1e-3, momentum=0.9), ours.chain(*links), optax.chain(*links),
    )  # fmt: skip

    def third(tx):
        state = tx.init(jnp.zeros(1000, jnp.bfloat16))
        for i in range(3):
            g = jax.random.normal(jax.random.key(i), (1000,), jnp.bfloat16)
            update, state = tx.update(g, state)
        return update

    assert parts == whole
    np.testing.assert_array_equal(third(parts), third(whole))
    # Where every link rounds, unless XLA compiles all at once.
    assert (third(loose) != third(whole)).any()
