"""Keras: archives and HDF5 files, of Keras 3 and of tf.keras. Keras itself is not needed."""

import dataclasses
import io
import itertools
import pathlib
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
import optax

from ..interop import _orders as orders
from ..interop import _states as states
from ..interop import keras as keras_variables
from . import _guard as guard
from ._calls import Call, is_setting
from ._guard import Refused
from ._saved import (
    Array,
    Convert,
    Group,
    New,
    Options,
    Saved,
    array,
    checked_names,
    mapping,
)

_MEMBER = "model.weights.h5"
_IN_ORDER = (
    "optimizer/inner_optimizer/vars", "optimizer/vars", "_optimizer/vars", "inner_optimizer/vars",
)  # fmt: skip
# The variables of layers whose order is known, by the names that Keras gives them.
_KINDS = {
    "dense": ["kernel", "bias"],
    "conv1d": ["kernel", "bias"],
    "conv2d": ["kernel", "bias"],
    "conv3d": ["kernel", "bias"],
    "batch_normalization": ["gamma", "beta", "moving_mean", "moving_variance"],
    "layer_normalization": ["gamma", "beta"],
    "embedding": ["embeddings"],
}
# What has a variable for each parameter, where the config is silent.
_SWITCHES = dict.fromkeys([*orders.BEFORE.values(), "momentum", "centered"], False)
_MANY = 20_000  # orders that are tried


class Variables(dict[str, Any]):
    """Arrays by name, with what HDF5 says of their group."""

    def __init__(self, arrays: Mapping[str, Any], attrs: Mapping[str, Any]):
        super().__init__(arrays)
        self.attrs = attrs


@dataclasses.dataclass
class Keras(Saved):
    """A file of Keras or tf.keras."""

    source: pathlib.Path = pathlib.Path()
    member: str = ""  # of an archive
    places: dict[str, str] = dataclasses.field(default_factory=dict[str, str])
    """Of each weight, the path of its array in the file."""
    variables: Variables = dataclasses.field(default_factory=lambda: Variables({}, {}))
    group: str = ""  # of the optimizer's variables
    found: states.Variables = dataclasses.field(
        default_factory=lambda: states.Variables({}, {}, [])
    )
    """What each of the variables holds."""
    units: list[list["_Layer"]] = dataclasses.field(default_factory=list[list["_Layer"]])
    """The layers in the model's order, as far as it is known."""

    def state(self, like: Any, convert: Convert, options: Options) -> optax.OptState:
        """`like` with what the optimizer accumulated."""
        rate = options.settings.get("learning_rate")
        return states.from_variables("from_keras", self.found, like, convert, options.count, rate)

    def write(self, path: pathlib.Path, new: New, options: Options) -> None:
        """The same file with other weights and another state."""
        values = {self.places[name]: x for name, x in new.weights.items()}
        if new.state is not None:
            rate = options.settings.get("learning_rate")
            made = keras_variables.written("to_keras", self.found, new.state, new.convert, rate)
            values |= {f"{self.group}/{key}": x for key, x in made.items()}
        if not self.member:
            shutil.copyfile(self.source, path)
            _overwrite(path, values)
            return
        with guard.archive(self.source, str(self.source)) as old:
            buffer = io.BytesIO(guard.member(old, self.member, str(self.source)))
        _overwrite(buffer, values)
        guard.rewrite(self.source, path, {self.member: buffer.getvalue()})


def read(path: pathlib.Path, options: Options) -> Keras:
    """A `.keras`, `.weights.h5` or `.h5` file."""
    where = str(path)
    if not zipfile.is_zipfile(path):
        with guard.hdf5(path, where) as opened:
            return _read(opened, path, {}, options)
    with guard.archive(path, where) as zipped:
        config = guard.json_of(guard.member(zipped, "config.json", where), f"{path}: config.json")
        data = io.BytesIO(guard.member(zipped, _MEMBER, where))
    with guard.hdf5(data, f"{path}: {_MEMBER}") as opened:
        saved = _read(opened, path, config, options)
    saved.member = _MEMBER
    return saved


def _read(opened: Any, path: pathlib.Path, config: Mapping[str, Any], options: Options) -> Keras:
    saved = Keras("Keras", {}, source=path)
    if "layer_names" in opened.attrs or "model_weights" in opened:
        training = opened.attrs.get("training_config")
        text = training.decode() if isinstance(training, bytes) else training
        told = guard.json_of(text, f"{path}: training_config") if text else {}
        optimizer = mapping(told.get("optimizer_config"))
        _read_whole_model(saved, opened, path)
    else:
        optimizer = mapping(mapping(config.get("compile_config")).get("optimizer"))
        _read_in_order(saved, opened, path, config, options)
    if saved.variables:
        _describe(saved, path, optimizer, options)
    return saved


def _read_whole_model(saved: Keras, opened: Any, path: pathlib.Path) -> None:
    """A model in HDF5, where every variable has its name."""
    saved.format = "Keras, HDF5"
    root = "model_weights" if "model_weights" in opened else ""
    layers = opened[root] if root else opened
    for layer in _texts(layers.attrs.get("layer_names", [])):
        for name in _texts(_inside(layers, layer, path).attrs.get("weight_names", [])):
            place = f"{root}/{layer}/{name}".strip("/")
            plain = name.removesuffix(":0")
            saved.places[plain] = place
            saved.weights[plain] = _values(opened, place, path)
    if "optimizer_weights" in opened:
        saved.group = "optimizer_weights"
        names = _texts(opened[saved.group].attrs.get("weight_names", []))
        saved.variables = Variables(
            {name: _values(opened, f"{saved.group}/{name}", path) for name in names},
            {"weight_names": names},
        )


def _read_in_order(
    saved: Keras, opened: Any, path: pathlib.Path, config: Mapping[str, Any], options: Options
) -> None:
    """The variables of Keras 3's files, which have numbers."""
    saved.format = "Keras, archive" if config else "Keras, weights"
    saved.group = next((group for group in _IN_ORDER if group in opened), "")
    configured = list(_configured(mapping(config.get("config")).get("layers")))
    known = {path: (name, trained) for path, name, trained in configured}
    found = _layers(opened)
    titles = Counter(known.get(layer, (title,))[0] for layer, title, _ in found)
    layers = list[_Layer]()
    for layer, title, places in found:
        title, is_trained = known.get(layer, (title, True))
        arrays = [_values(opened, place, path) for place in places]
        # Layers of two models within one may have the same name.
        made = _layer(layer, title if titles[title] == 1 else layer, arrays, is_trained)
        layers.append(made)
        saved.places |= dict(zip(made.names, places, strict=True))
        saved.weights |= dict(zip(made.names, arrays, strict=True))
    trained, order = [layer for layer in layers if layer.trained], [x for x, _, _ in configured]

    def owner(layer: _Layer) -> str:
        return next((p for p in order if f"{layer.path}/".startswith(f"{p}/")), "")

    saved.units = [[x for x in trained if owner(x) == path] for path in (*order, "")]
    if saved.group:
        numbered = sorted((name for name in opened[saved.group] if name.isdigit()), key=int)
        saved.variables = Variables(
            {name: _values(opened, f"{saved.group}/{name}", path) for name in numbered},
            {"name": str(opened[saved.group].attrs.get("name", ""))},
        )


def _describe(saved: Keras, path: pathlib.Path, told: Mapping[str, Any], options: Options) -> None:
    """Read the optimizer: whose it is, its settings, and its arrays by name."""
    while "inner_optimizer" in mapping(told.get("config")):  # of the one that scales the loss
        told = mapping(told["config"]["inner_optimizer"])
    config = mapping(told.get("config"))
    name = str(told.get("class_name", "RMSprop")).rpartition(">")[2]
    saved.settings = {k: v for k, v in config.items() if is_setting(v) or isinstance(v, str)}
    if name != "RMSprop":
        saved.optimizer = name
        return
    arguments = _arguments(path, config)
    in_order = saved.format != "Keras, HDF5"
    # These say what the file has, and are no arguments of a call.
    call_options = _without(options, orders.BEFORE.values()) if in_order else options
    known = {**_SWITCHES, **config} if config else {}
    known = {k: x for k, x in {**known, **options.settings}.items() if x is not ...}
    try:
        order = None
        if in_order:
            keras_variables.check_owner("inspect", saved.variables.attrs["name"])
            order = _name_in_order(saved, known, options)
        else:
            _name_whole_model(saved, options)
        found = keras_variables.variables_of(
            "inspect", saved.variables, saved.names, {"nu"}, None, order
        )
    except TypeError as error:
        saved.optimizer = f"another ({error})"
        return
    except ValueError as error:
        raise Refused(f"{path}: {error}") from error
    saved.found = found
    saved.take(found)
    if not config:
        arguments = _arguments_of_arrays(found, in_order)
    saved.notes += _not_carried(known, order or ())
    if isinstance(schedule := config.get("learning_rate"), Mapping):
        found_name = str(mapping(cast(Any, schedule)).get("class_name"))
        saved.settings["learning_rate"] = found_name
        saved.notes.append(f"the learning rate is a schedule, {found_name}: give it in the call")
    ends = {key.removesuffix(":0").rpartition("/")[2] for key in saved.variables}
    legacy = "decay" in config or "rms" in ends
    call = Call("keras2" if legacy else "keras", arguments)
    saved.may_be([[Group(call, saved.names)]], call_options)


def _not_carried(settings: Mapping[str, Any], order: orders.Order) -> list[str]:
    """What is to be known of averages and accumulators, where there are any."""
    has = {kind for kind, name in orders.BEFORE.items() if settings.get(name) or kind in order}
    notes = {
        "average": "the averaged weights of use_ema are not carried",
        "accumulator": "the steps are batches, of which gradient_accumulation_steps make an "
        "update: --count gives another number",
    }
    return [text for kind, text in notes.items() if kind in has]


def _without(options: Options, names: Iterable[str]) -> Options:
    kept = {k: x for k, x in options.settings.items() if k not in {*names}}
    return dataclasses.replace(options, settings=kept)


def _arguments_of_arrays(found: Any, all_are_there: bool) -> dict[str, Any]:
    """What the arrays tell of the call where no config does; the rest is to be asked for."""
    names = ("learning_rate", "rho", "momentum", "epsilon", "centered")
    arguments: dict[str, Any] = dict.fromkeys(names, ...)
    if (rate := found.scalar("learning_rate")) is not None:
        arguments["learning_rate"] = rate
    quantities = {quantity for quantity, name in found.roles.values() if name}
    if len(quantities) == 1 and all_are_there:
        arguments |= {"momentum": 0.0, "centered": False}
    return arguments


def _arguments(path: pathlib.Path, config: Mapping[str, Any]) -> dict[str, Any]:
    names = ["learning_rate", "rho", "momentum", "epsilon", "centered", "weight_decay"]
    names += ["clipnorm", "clipvalue", "global_clipnorm", "decay"]
    found = {name: config[name] for name in names if name in config}
    if isinstance(found.get("learning_rate"), Mapping):
        found["learning_rate"] = ...
    if not found.get("decay"):
        found.pop("decay", None)
    for name, value in found.items():
        if not is_setting(value):
            raise Refused(f"{path}: {name} of the optimizer is no number: {value!r:.40}")
    return found


def _name_whole_model(saved: Keras, options: Options) -> None:
    """Find the weights that the optimizer's variables are of, by their names."""
    if options.names:
        saved.names = list(options.names)
        return
    shorts = keras_variables.variables_of("inspect", saved.variables, None, {"nu"}, None).names
    flat = {name.replace("/", "_"): name for name in saved.weights}
    saved.names = [flat.get(short.replace("/", "_"), "") for short in shorts]
    saved.named = len({*saved.names} - {""}) == len(shorts)
    if not saved.named:
        saved.names = list(shorts)


def _name_in_order(saved: Keras, settings: Mapping[str, Any], options: Options) -> orders.Order:
    """Find the weights that the optimizer's variables are of, by their order; what each has."""
    arrays = [saved.variables[key] for key in saved.variables]
    head = len(list(itertools.takewhile(lambda x: x.ndim == 0, arrays[:2])))
    slots, steps = arrays[head:], float(arrays[0]) if head else 0.0
    shapes = [tuple(x.shape) for x in slots]
    possible = dict[int, list[orders.Order]]()  # by the number of arrays that each weight has
    for each in range(1, orders.MOST + 1):
        if shapes == shapes[: len(shapes) // each] * each:
            if found := orders.possible(settings, slots, each, steps):
                possible[each] = found
    if options.names:
        fit = (each for each in possible if each * len(options.names) == len(slots))
        each = next(fit, min(possible, default=1))
        saved.names = checked_names(list(options.names), len(shapes) // each)
        return _decided(possible, each, slots, settings)
    named = list[tuple[int, list[str]]]()
    for each in possible:
        own = shapes[: len(shapes) // each]
        tried = _orders(saved.units, own, saved.weights, itertools.count())
        try:
            some = list(itertools.islice(tried, 2))
        except (RecursionError, TimeoutError):
            some = list[list[list[str]]]([[], []])
        named += [(each, [name for layer in layers for name in layer]) for layers in some]
    if len(named) == 1:
        saved.names = named[0][1]
        return _decided(possible, named[0][0], slots, settings)
    saved.named = False
    numbers = {each for each, _ in named} or {*possible}
    each = min(numbers, default=1)
    saved.names = [str(i) for i in range(len(shapes) // each)]
    saved.notes.append(
        "the file numbers the optimizer's variables, and several weights fit: give --names, in "
        "the model's order"
    )
    return _decided(possible, each, slots, settings)


def _decided(
    possible: Mapping[int, list[orders.Order]],
    each: int,
    slots: Sequence[Array],
    settings: Mapping[str, Any],
) -> orders.Order:
    """The order of this many kinds of variables, if there is only one."""
    found = possible.get(each)
    if not found:
        return orders.orders(settings)[0]
    if order := orders.agreed(found, slots):
        return order
    readings = [", ".join(orders.WORDS[kind] for kind in order) for order in found]
    raise ValueError(
        f"the {each} variables of each parameter have no names, and may be "
        f"({') or ('.join(readings)}): give the .keras file, or --set use_ema=VALUE, --set "
        "gradient_accumulation_steps=VALUE, --set momentum=VALUE and --set centered=VALUE"
    )


class _Layer(NamedTuple):
    """A layer of a file of Keras 3."""

    path: str
    name: str
    names: list[str]  # of its weights
    trained: list[str]  # those that an optimizer has, in its order

    @property
    def series(self) -> tuple[str, int]:
        """What Keras numbers together, "dense", "dense_1", and the number."""
        match = re.fullmatch(r"(.*?)(?:_(\d+))?", self.path, re.DOTALL)
        return (match[1], int(match[2] or 0)) if match else (self.path, 0)


def _layers(opened: Any) -> list[tuple[str, str, list[str]]]:
    """The path of each layer, the name that the file has of it, and the places of its arrays."""
    found, left = list[tuple[str, str, list[str]]](), [opened]
    while left:
        group = left.pop()
        inside = [group[name] for name in group]
        left += [x for x in inside if hasattr(x, "keys")]
        arrays = [x.name.strip("/") for x in inside if not hasattr(x, "keys")]
        path, _, last = group.name.strip("/").rpartition("/")
        if last == "vars" and path.partition("/")[0] not in ("optimizer", "_optimizer", "metrics"):
            places = sorted((x for x in arrays if x.rpartition("/")[2].isdigit()), key=_by_number)
            title = str(group.attrs.get("name", "")) or path.rpartition("/")[2]
            found.append((path, title, places))
    return sorted(found, key=lambda layer: _by_number(layer[0]))


def _by_number(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(x.isdigit(), int(x) if x.isdigit() else 0, x) for x in parts]


def _configured(layers: Any, path: str = "") -> Iterator[tuple[str, str, bool]]:
    """The path, the name and the switch of each layer in a model's config, in the model's order."""
    used = dict[str, int]()
    for layer in cast("list[Any]", layers if isinstance(layers, list) else []):
        config = mapping(mapping(layer).get("config"))
        name = _snake_case(str(mapping(layer).get("class_name", "")).rpartition(">")[2])
        number = used[name] = used.get(name, -1) + 1
        own = f"{path}layers/{name}" + (f"_{number}" if number else "")
        inner = config.get("layers")
        if inner:
            yield from _configured(inner, f"{own}/")
        else:
            yield own, str(config.get("name", "")), config.get("trainable", True) is not False


def _snake_case(name: str) -> str:
    """As Keras names a class."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _layer(path: str, name: str, arrays: list[Array], is_trained: bool) -> _Layer:
    base = re.sub(r"_\d+$", "", path.rpartition("/")[2])
    kinds = _KINDS.get(base, [])
    whole = "normalization" in base
    known = len(arrays) == len(kinds) if whole else len(arrays) <= len(kinds)
    names = [f"{name}/{kinds[i] if known else i}" for i in range(len(arrays))]
    # The statistics of a normalisation come last.
    last = len(arrays) - (2 if base == "batch_normalization" else 0)
    last = last if is_trained and base != "normalization" else 0
    trained = [n for n, x in zip(names[:last], arrays, strict=False) if x.dtype.kind in "fcV"]
    return _Layer(path, name, names, trained)


def _orders(
    units: Sequence[Sequence[_Layer]],
    shapes: Sequence[tuple[int, ...]],
    weights: Mapping[str, Array],
    tries: Iterator[int],
) -> Iterator[list[list[str]]]:
    """The orders of layers in which their weights have these shapes.

    Units follow each other. Within a unit only layers of one class have an order.
    """
    if next(tries) > _MANY:
        raise TimeoutError
    if not units:
        if not shapes:
            yield []
        return
    unit, *rest = units
    if not unit:
        yield from _orders(rest, shapes, weights, tries)
        return
    for layer in unit:
        own = [tuple(weights[name].shape) for name in layer.trained]
        others = [x for x in unit if x is not layer]
        (series, number) = layer.series
        first = all(x.series[0] != series or x.series[1] > number for x in others)
        if first and list(shapes[: len(own)]) == own:
            for tail in _orders([others, *rest], shapes[len(own) :], weights, tries):
                yield [layer.trained, *tail]


def _values(opened: Any, place: str, path: pathlib.Path) -> Array:
    return array(f"{path}: {place}", np.asarray(_inside(opened, place, path)))


def _inside(group: Any, name: str, path: pathlib.Path) -> Any:
    try:
        return group[name]
    except (KeyError, ValueError) as error:
        raise Refused(f"{path} has no {name}, which it lists") from error


def _overwrite(file: Any, values: Mapping[str, Array]) -> None:
    """Write arrays into the places that a file has for them."""
    h5py = guard.needed("h5py", "a file of Keras")
    with h5py.File(file, "r+") as opened:
        for place, x in values.items():
            old = opened[place]
            if tuple(old.shape) != tuple(x.shape):
                raise Refused(f"{place} has shape {old.shape} in the file of --like, not {x.shape}")
            narrow = old.dtype.kind == "V"  # bfloat16, as two bytes
            old[...] = x.astype(jnp.bfloat16).view("V2") if narrow else x.astype(old.dtype)


def _texts(x: Any) -> list[str]:
    return [t.decode() if isinstance(t, bytes) else str(t) for t in x]
