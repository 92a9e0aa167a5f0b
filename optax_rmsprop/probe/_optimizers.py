"""Other optimizers than RMSprop, on a recorded run, many at once, in float64 NumPy.

Each is a function of the gradients that enter it, its numbers and the run, which gives the steps
at a rate of 1. Weight decay and clipping are options of all of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ._model import Array, Run

COLUMNS = ("lr", "b1", "b2", "eps", "extra", "weight_decay", "bound", "sign")
LR, B1, B2, EPS, EXTRA, LAMBDA, BOUND, SIGN = range(len(COLUMNS))
NONE, DECOUPLED, UNSCALED, L2 = range(4)
CLIP_VALUE, CLIP_LEAF, CLIP_ALL = range(1, 4)

Numbers: TypeAlias = list[Array]  # by column, [B, 1, 1] each
# A power of the size of the gradients, and the values that are times it.
Start: TypeAlias = tuple[int, tuple[float, ...]]
Rule: TypeAlias = Callable[[Array, Numbers, Run], Array]


@dataclasses.dataclass(frozen=True)
class Kind:
    """An optimizer: its rule, and its numbers by column, with their names and where they begin.

    A start is times a power of the size of the gradients. Without what it `needs` it is another
    rule, an RMSprop or a simpler one; what is in `drops` may be 0.
    """

    name: str
    rule: Rule
    starts: Mapping[int, Start]
    shown: Mapping[int, str]
    detail: str = ""
    place: str = ""  # where epsilon is, said where it is seen
    needs: tuple[int, ...] = ()
    drops: tuple[int, ...] = ()
    corrected: tuple[int, ...] = ()  # decays whose powers correct a bias
    moved: tuple[int, ...] = ()  # decays whose own rounding is felt
    jumps: bool = False  # the steps are no continuous function of the numbers
    bounded: bool = False  # B2 and EPS bound the steps, relative to the rate


@dataclasses.dataclass(frozen=True)
class Option:
    """What any optimizer may have besides."""

    decay: int = NONE
    clip: int = NONE


@dataclasses.dataclass(frozen=True)
class Hypotheses:
    """One kind with one option and many numbers [B, n]."""

    kind: Kind
    option: Option
    numbers: Array

    def take(self, rows: Any) -> "Hypotheses":
        """Those of these rows."""
        return self.of(self.numbers[rows])

    def of(self, numbers: Array) -> "Hypotheses":
        """The same kind with other numbers."""
        return dataclasses.replace(self, numbers=numbers)

    @property
    def free(self) -> Array:
        """Which numbers are fitted: those that are there."""
        free = np.zeros(self.numbers.shape, bool)
        free[:, [LR, *self.kind.starts]] = True
        free[:, LAMBDA] = self.option.decay != NONE
        free[:, BOUND] = self.option.clip != NONE
        return free & (self.numbers != 0)


def simulate(hypotheses: Hypotheses, run: Run) -> Array:
    """The change [B, T, N] that each step makes."""
    n = [column[:, None, None] for column in hypotheses.numbers.T]
    option, rates, before = hypotheses.option, run.rates[:, None], run.params[:-1]
    with np.errstate(all="ignore"):
        g = n[SIGN] * run.grads
        if option.clip == CLIP_VALUE:
            g = np.clip(g, -n[BOUND], n[BOUND])
        elif option.clip != NONE:
            norm = run.leaf_norm if option.clip == CLIP_LEAF else run.norm
            g = g * (n[BOUND] / np.maximum(norm, n[BOUND]))
        if option.decay == L2:
            g = g + n[LAMBDA] * before
        change = -n[LR] * hypotheses.kind.rule(g, n, run)
        if option.decay == DECOUPLED:
            change = change - n[LR] * rates * n[LAMBDA] * before
        elif option.decay == UNSCALED:
            change = change - n[LAMBDA] * before
    return change


# What the rules are made of.


def _sums(x: Array, decay: Array | float, first: Array | float = 0.0) -> Array:
    """Sums over the steps that forget, after each of them."""
    total: Array = np.zeros_like(x[:, 0]) + np.reshape(first, (-1, 1))
    result, keep = np.empty_like(x), np.reshape(decay, (-1, 1))
    for t in range(x.shape[1]):
        result[:, t] = total = keep * total + x[:, t]
    return result


def averages(x: Array, decay: Array) -> Array:
    """Averages that forget and begin at 0."""
    return _sums((1 - decay) * x, decay)


def _count(x: Array) -> Array:
    """1 at the first step, and so on [T, 1]."""
    return np.array([[float(t)] for t in range(1, x.shape[1] + 1)])


def _unbiased(x: Array, decay: Array, ahead: int = 0) -> Array:
    return x / (1 - decay ** (_count(x) + ahead))


def _over(x: Array, denominator: Array) -> Array:
    positive = denominator > 0
    return np.where(positive, x / np.where(positive, denominator, 1.0), 0.0)


def delayed(x: Array) -> Array:
    """What was there before each step, from what is there after."""
    return np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], 1)


# The rules: gradients, numbers and run to the steps at a rate of 1.


def _sgd(g: Array, n: Numbers, run: Run) -> Array:
    return run.rates[:, None] * g


def _normalized(rule: Rule, leaf: bool) -> Rule:
    """A rule on gradients over their norm, or over that of their leaf."""

    def normalized(g: Array, n: Numbers, run: Run) -> Array:
        return rule(_over(g, (run.leaf_norm if leaf else run.norm) + n[EPS]), n, run)

    return normalized


def _decay_alone(g: Array, n: Numbers, run: Run) -> Array:
    return run.rates[:, None] * run.params[:-1] + 0 * g


def _momentum(g: Array, n: Numbers, run: Run) -> Array:
    return run.rates[:, None] * _sums(g, n[B1])


def _dampened(g: Array, n: Numbers, run: Run) -> Array:
    first = _count(g) == 1
    return run.rates[:, None] * _sums(np.where(first, g, (1 - n[B2]) * g), n[B1])


def _nesterov(g: Array, n: Numbers, run: Run) -> Array:
    return run.rates[:, None] * (g + n[B1] * _sums(g, n[B1]))


def _momentum_of_steps(g: Array, n: Numbers, run: Run) -> Array:
    return _sums(run.rates[:, None] * g, n[B1])


def _nesterov_of_steps(g: Array, n: Numbers, run: Run) -> Array:
    steps = run.rates[:, None] * g
    return steps + n[B1] * _sums(steps, n[B1])


def _soft(rule: Rule, inside: bool) -> Rule:
    """A rule on signs, softened by epsilon: RMSprop with a decay of 0."""

    def softened(g: Array, n: Numbers, run: Run) -> Array:
        size = np.sqrt(g * g + n[EPS]) if inside else np.abs(g) + n[EPS]
        return rule(_over(g, size), n, run)

    return softened


def _lion(g: Array, n: Numbers, run: Run) -> Array:
    return run.rates[:, None] * np.sign(n[B1] * delayed(averages(g, n[B2])) + (1 - n[B1]) * g)


def _sign(g: Array, n: Numbers, run: Run) -> Array:
    return run.rates[:, None] * np.sign(g)


def _signum(g: Array, n: Numbers, run: Run) -> Array:
    return run.rates[:, None] * np.sign(averages(g, n[B1]))


def _adagrad(g: Array, n: Numbers, run: Run) -> Array:
    rates = run.rates[:, None] / (1 + (_count(g) - 1) * n[B2])
    return rates * _over(g, np.sqrt(_sums(g * g, 1.0, n[EXTRA])) + n[EPS])


def _adagrad_momentum(g: Array, n: Numbers, run: Run) -> Array:
    return run.rates[:, None] * _sums(
        _over(g, np.sqrt(_sums(g * g, 1.0, n[EXTRA])) + n[EPS]), n[B1]
    )


def _adadelta(g: Array, n: Numbers, run: Run) -> Array:
    square, step, eps = averages(g * g, n[B2]), np.empty_like(g), n[EPS][:, 0]
    rho, seen = n[B2][:, 0], np.zeros_like(g[:, 0])
    for t in range(g.shape[1]):
        step[:, t] = np.sqrt((seen + eps) / (square[:, t] + eps)) * g[:, t]
        seen = rho * seen + (1 - rho) * step[:, t] ** 2
    return run.rates[:, None] * step


def _moments(g: Array, n: Numbers) -> tuple[Array, Array]:
    """The averages of the gradients and of their squares, without their bias."""
    return _unbiased(averages(g, n[B1]), n[B1]), _unbiased(averages(g * g, n[B2]), n[B2])


def _outside(n: Numbers, square: Array) -> Array:
    return np.sqrt(square) + n[EPS]


def _inside(n: Numbers, square: Array) -> Array:
    return np.sqrt(square + n[EPS])


def _hat(n: Numbers, square: Array) -> Array:
    """Epsilon beside the root before its bias is taken out."""
    return np.sqrt(square) + n[EPS] / np.sqrt(1 - n[B2] ** _count(square))


def _adam(denominator: Any) -> Rule:
    def rule(g: Array, n: Numbers, run: Run) -> Array:
        m, v = _moments(g, n)
        return run.rates[:, None] * _over(m, denominator(n, v))

    return rule


def _biased(denominator: Any) -> Rule:
    def rule(g: Array, n: Numbers, run: Run) -> Array:
        return run.rates[:, None] * _over(
            averages(g, n[B1]), denominator(n, averages(g * g, n[B2]))
        )

    return rule


def _rmsprop(denominator: Any, corrected: bool) -> Rule:
    def rule(g: Array, n: Numbers, run: Run) -> Array:
        square = averages(g * g, n[B2])
        return run.rates[:, None] * _over(
            g, denominator(n, _unbiased(square, n[B2]) if corrected else square)
        )

    return rule


def _nadam(g: Array, n: Numbers, run: Run) -> Array:
    m, v = averages(g, n[B1]), _unbiased(averages(g * g, n[B2]), n[B2])
    ahead = n[B1] * _unbiased(m, n[B1], 1) + (1 - n[B1]) * _unbiased(g, n[B1])
    return run.rates[:, None] * _over(ahead, _outside(n, v))


def _nadam_scheduled(g: Array, n: Numbers, run: Run) -> Array:
    now, after = (n[B1] * (1 - 0.5 * 0.96 ** (n[EXTRA] * (_count(g) + i))) for i in (0, 1))
    product = np.cumprod(now, 1)
    v = _unbiased(averages(g * g, n[B2]), n[B2])
    own, old = (1 - now) / (1 - product), after / (1 - product * after)
    return run.rates[:, None] * _over(own * g + old * averages(g, n[B1]), _outside(n, v))


def _amsgrad(g: Array, n: Numbers, run: Run) -> Array:
    m, v = _moments(g, n)
    return run.rates[:, None] * _over(m, _outside(n, np.maximum.accumulate(v, 1)))


def _amsgrad_late(denominator: Any) -> Rule:
    def rule(g: Array, n: Numbers, run: Run) -> Array:
        most = np.maximum.accumulate(averages(g * g, n[B2]), 1)
        m = _unbiased(averages(g, n[B1]), n[B1])
        return run.rates[:, None] * _over(m, denominator(n, _unbiased(most, n[B2])))

    return rule


def _amsgrad_biased(g: Array, n: Numbers, run: Run) -> Array:
    most = np.maximum.accumulate(averages(g * g, n[B2]), 1)
    return run.rates[:, None] * _over(averages(g, n[B1]), _outside(n, most))


def _largest(x: Array, decay: Array) -> Array:
    most, result = np.zeros_like(x[:, 0]), np.empty_like(x)
    for t in range(x.shape[1]):
        result[:, t] = most = np.maximum(decay[:, 0] * most, x[:, t])
    return result


def _adamax(g: Array, n: Numbers, run: Run) -> Array:
    m = _unbiased(averages(g, n[B1]), n[B1])
    return run.rates[:, None] * _over(m, _largest(np.abs(g) + n[EPS], n[B2]))


def _adamax_outside(g: Array, n: Numbers, run: Run) -> Array:
    m = _unbiased(averages(g, n[B1]), n[B1])
    return run.rates[:, None] * _over(m, _largest(np.abs(g), n[B2]) + n[EPS])


def _adabelief(g: Array, n: Numbers, run: Run) -> Array:
    m = averages(g, n[B1])
    square = _unbiased(_sums((1 - n[B2]) * (g - m) ** 2 + n[EXTRA], n[B2]), n[B2])
    return run.rates[:, None] * _over(_unbiased(m, n[B1]), _outside(n, square))


def _yogi(same_start: bool) -> Rule:
    """Yogi, whose average of the gradients may start where that of the squares does."""

    def rule(g: Array, n: Numbers, run: Run) -> Array:
        squares, result = g * g, np.empty_like(g)
        square, keep = np.zeros_like(g[:, 0]) + n[EXTRA][:, 0], 1 - n[B2][:, 0]
        for t in range(g.shape[1]):
            square = square - keep * np.sign(square - squares[:, t]) * squares[:, t]
            result[:, t] = square
        m = _sums((1 - n[B1]) * g, n[B1], n[EXTRA] * same_start)
        m, v = _unbiased(m, n[B1]), _unbiased(result, n[B2])
        return run.rates[:, None] * _over(m, _outside(n, v))

    return rule


def _radam(g: Array, n: Numbers, run: Run) -> Array:
    m, v = _moments(g, n)
    power, count = n[B2] ** _count(g), _count(g)
    most = 2 / (1 - n[B2]) - 1
    length = most - 2 * count * power / (1 - power)
    share = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
    rectified = np.sqrt(np.maximum(share, 0)) * _over(m, _outside(n, v))
    return run.rates[:, None] * np.where(length >= 5, rectified, m)


def _laprop(g: Array, n: Numbers, run: Run) -> Array:
    v = _unbiased(averages(g * g, n[B2]), n[B2])
    return run.rates[:, None] * _unbiased(averages(_over(g, _outside(n, v)), n[B1]), n[B1])


def _rprop_steps(g: Array, n: Numbers) -> tuple[Array, Array]:
    """The signed steps of Rprop, and where the gradient turned; bounds are times the rate."""
    least, most = n[B2][:, 0], np.where(n[EPS] > 0, n[EPS], np.inf)[:, 0]
    size, old = np.ones_like(g[:, 0]), np.zeros_like(g[:, 0])
    steps, turned = np.empty_like(g), np.empty(g.shape, bool)
    for t in range(g.shape[1]):
        same = np.sign(g[:, t]) * np.sign(old)
        factor = np.where(same > 0, n[EXTRA][:, 0], n[B1][:, 0])
        size = np.where(same == 0, size, np.clip(size * factor, least, most))
        old = np.where(same < 0, 0.0, size * np.sign(g[:, t]))
        steps[:, t], turned[:, t] = old, same < 0
    return steps, turned


def _rprop(g: Array, n: Numbers, run: Run) -> Array:
    return _rprop_steps(g, n)[0]


def _rprop_late(g: Array, n: Numbers, run: Run) -> Array:
    steps, turned = _rprop_steps(g, n)
    return np.where(turned, 0.0, delayed(steps))


_B1, _B2, _MOMENTA = (0, (0.6, 0.9)), (0, (0.8, 0.9, 0.97, 0.995)), (0, (0.5, 0.9, 0.99))
_EPS, _EPS2, _FIRST = (1, (1e-4, 0.3)), (2, (1e-6, 0.1)), (2, (0.1, 10.0))


def _like(kind: Kind, name: str, rule: Rule, **changes: Any) -> Kind:
    """A kind that is as another in all that is not given."""
    return dataclasses.replace(kind, name=name, rule=rule, **changes)


def _with(kind: Kind, column: int, start: Start, name: str) -> dict[str, Any]:
    """What a kind starts with and shows, with one number more."""
    return {"starts": {**kind.starts, column: start}, "shown": {**kind.shown, column: name}}


ADAM = Kind(
    "Adam", _adam(_outside), {B1: _B1, B2: _B2, EPS: _EPS}, {B1: "b1", B2: "b2", EPS: "eps"},
    needs=(B1,), drops=(EPS,), corrected=(B1, B2),
)  # fmt: skip
_BIASED = _like(ADAM, "Adam without bias correction", _biased(_outside), corrected=())
_ROOTED: dict[str, Any] = {
    "starts": {B1: _B1, B2: _B2, EPS: _EPS2}, "place": "epsilon inside the root",
}  # fmt: skip
_HAT: dict[str, Any] = {"place": "epsilon beside the uncorrected root"}
_MOMENTUM = Kind(
    "SGD with momentum", _momentum, {B1: _MOMENTA}, {B1: "momentum"}, needs=(B1,)
)  # fmt: skip
_NOTHING: Mapping[int, Start] = {}
_OF_STEPS = "the learning rate in the momentum buffer"
_LATE = "the maximum before the bias correction"
_SIGNS = "sign descent with momentum of the signs"


def _soft_kinds(name: str, rule: Rule, more: Mapping[int, Start], detail: str) -> list[Kind]:
    return [
        Kind(
            name, _soft(rule, inside), {**more, EPS: _EPS2 if inside else _EPS},
            {B1: "momentum", EPS: "eps"}, detail, "epsilon inside the root" if inside else "",
            needs=tuple(more), drops=(EPS,),
        )
        for inside in (False, True)
    ]  # fmt: skip


_NESTEROV = _like(_MOMENTUM, "SGD with Nesterov momentum", _nesterov)
SGD = [
    Kind("SGD", _sgd, {}, {}),
    _MOMENTUM,
    _NESTEROV,
    Kind(
        "SGD with momentum", _dampened, {B1: _MOMENTA, B2: (0, (0.1, 0.9))},
        {B1: "momentum", B2: "dampening"}, "dampening from the second step on", needs=(B1, B2),
    ),
]  # fmt: skip
SGD_OF_STEPS = [
    _like(_MOMENTUM, _MOMENTUM.name, _momentum_of_steps, detail=_OF_STEPS),
    _like(_NESTEROV, _NESTEROV.name, _nesterov_of_steps, detail=_OF_STEPS),
]
SIGNS = [
    *_soft_kinds("sign descent", _sgd, {}, ""),
    *_soft_kinds(_SIGNS, _momentum, {B1: _MOMENTA}, ""),
    *_soft_kinds(_SIGNS, _nesterov, {B1: _MOMENTA}, "Nesterov"),
]
SIGNS_OF_STEPS = [
    *_soft_kinds(_SIGNS, _momentum_of_steps, {B1: _MOMENTA}, _OF_STEPS),
    *_soft_kinds(_SIGNS, _nesterov_of_steps, {B1: _MOMENTA}, f"Nesterov, {_OF_STEPS}"),
]
ADAPTIVE = [
    *(
        Kind(
            "normalized SGD" + " with momentum" * bool(more), _normalized(rule, leaf),
            {**more, EPS: _EPS}, {B1: "momentum", EPS: "eps"},
            f"the norm of {'each leaf' if leaf else 'all gradients'}",
            needs=tuple(more), drops=(EPS,),
        )
        for leaf in (False, True)
        for rule, more in ((_sgd, _NOTHING), (_momentum, {B1: _MOMENTA}))
    ),
    Kind("Adagrad", _adagrad, {EPS: _EPS}, {EPS: "eps"}, drops=(EPS,)),
    Kind(
        "Adagrad", _adagrad, {EPS: _EPS, EXTRA: _FIRST},
        {EPS: "eps", EXTRA: "initial_accumulator_value"}, drops=(EXTRA, EPS),
    ),
    Kind(
        "Adagrad", _adagrad, {EPS: _EPS, B2: (0, (0.01, 0.3))},
        {EPS: "eps", B2: "lr_decay"}, needs=(B2,), drops=(EPS,),
    ),
    Kind(
        "Adagrad with momentum", _adagrad_momentum, {B1: _MOMENTA, EPS: _EPS, EXTRA: _FIRST},
        {B1: "momentum", EPS: "eps", EXTRA: "initial_accumulator_value"}, needs=(B1,),
        drops=(EXTRA, EPS),
    ),
    Kind(
        "Adadelta", _adadelta, {B2: _B2, EPS: (2, (1e-8, 1e-5, 1e-3, 0.1))},
        {B2: "rho", EPS: "eps"},
    ),
    ADAM,
    _like(ADAM, "Adam", _adam(_inside), **_ROOTED),
    _like(ADAM, "Adam", _adam(_hat), **_HAT),
    _like(ADAM, "Nadam", _nadam),
    _like(
        ADAM, "Nadam", _nadam_scheduled, **_with(ADAM, EXTRA, (0, (4e-3, 1.0)), "momentum_decay")
    ),
    _like(ADAM, "AMSGrad", _amsgrad, detail="the maximum after the bias correction"),
    _like(ADAM, "AMSGrad", _amsgrad_late(_outside), detail=_LATE),
    _like(ADAM, "AMSGrad", _amsgrad_late(_hat), detail=_LATE, **_HAT),
    _like(ADAM, "AMSGrad", _amsgrad_biased, detail="no bias correction", corrected=()),
    _like(ADAM, "Adamax", _adamax, corrected=(B1,)),
    _like(
        ADAM, "Adamax", _adamax_outside, place="epsilon after the maximum", corrected=(B1,)
    ),
    _like(
        ADAM, "AdaBelief", _adabelief, drops=(EXTRA, EPS),
        **_with(ADAM, EXTRA, (2, (1e-8,)), "eps_root"),
    ),
    *(
        _like(
            ADAM, "Yogi", _yogi(same_start),
            detail="both averages start there" if same_start else "",
            starts={
                B1: (0, (0.5, 0.7, 0.9)), B2: (0, (0.8, 0.85, 0.9, 0.94, 0.97, 0.99, 0.998)),
                EPS: (1, (1e-3, 0.1)), EXTRA: (2, (1e-6, 0.1)),
            },
            shown=_with(ADAM, EXTRA, _FIRST, "initial_accumulator_value")["shown"],
            needs=(), drops=(EXTRA, EPS), jumps=True,
        )
        for same_start in (False, True)
    ),
    _like(ADAM, "RAdam", _radam, moved=(B2,)),
    _like(ADAM, "LaProp", _laprop),
    _BIASED,
    _like(_BIASED, _BIASED.name, _biased(_inside), **_ROOTED),
    *(
        Kind(
            "Rprop", rule, {B1: (0, (0.5,)), EXTRA: (0, (1.2,)), **bounds},
            {B1: "eta_minus", EXTRA: "eta_plus", B2: "min_step", EPS: "max_step"}, detail,
            drops=tuple(bounds), bounded=bool(bounds),
        )
        for rule, detail in ((_rprop, ""), (_rprop_late, "each step taken one step late"))
        for bounds in (_NOTHING, {B2: (0, (0.01,)), EPS: (0, (100.0,))})
    ),
]  # fmt: skip
# What has these rules is not to be named here, and nothing that needs more numbers is.
RMSPROP = [
    Kind(
        "RMSprop", _rmsprop(denominator, corrected),
        {B2: _B2, EPS: _EPS2 if denominator is _inside else _EPS}, {}, drops=(EPS,),
        corrected=(B2,) * corrected,
    )
    for denominator in (_inside, _outside)
    for corrected in (False, True)
]  # fmt: skip
LION = Kind("Lion", _lion, {B1: (0, ()), B2: (0, ())}, {B1: "b1", B2: "b2"})
SIGN_DESCENT = Kind("sign descent", _sign, {}, {})
SIGNUM = Kind("sign descent with momentum (Signum)", _signum, {B1: (0, ())}, {B1: "momentum"})
PLAIN_DECAY = Kind("plain decay only", _decay_alone, {}, {LR: "lr*weight_decay"})
