"""What a run is where it is no RMSprop: other optimizers, fitted to it and held against rounding.

Each optimizer is a function of the gradients that enter it, its numbers and the run, which gives
the steps at a rate of 1. Weight decay and clipping are options of all of them. What is a sign has
numbers that no derivative sees, and is solved for by the intervals that the signs leave.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np

from ._fit import fit
from ._model import Array, Run

COLUMNS = ("lr", "b1", "b2", "eps", "extra", "weight_decay", "bound", "sign")
LR, B1, B2, EPS, EXTRA, LAMBDA, BOUND, SIGN = range(len(COLUMNS))
NONE, DECOUPLED, UNSCALED, L2 = range(4)
CLIP_VALUE, CLIP_LEAF, CLIP_ALL = range(1, 4)

# Above this a residual is no rounding.
LIMIT = 2.0
# How far the gradients are moved to see what rounding does, in units of the roundoff, how often.
_MOVED, _DRAWS = 8.0, 6

Numbers: TypeAlias = list[Array]  # by column, [B, 1, 1] each
Rule: TypeAlias = Callable[[Array, Numbers, Run], Array]


@dataclasses.dataclass(frozen=True)
class Other:
    """An optimizer with the numbers that suit a run best.

    `explains` says whether it leaves nothing but rounding; `error` is the norm of what it leaves,
    relative to that of the changes. A number that the run does not show is not in `numbers`.
    """

    name: str
    numbers: dict[str, float]
    text: str
    explains: bool
    error: float


@dataclasses.dataclass(frozen=True)
class Kind:
    """An optimizer: its rule, and its numbers by column, with their names and where they begin.

    A start is times a power of the size of the gradients. Without what it `needs` it is another
    rule, an RMSprop or a simpler one; what is in `drops` may be 0.
    """

    name: str
    rule: Rule
    starts: dict[int, tuple[int, tuple[float, ...]]]
    shown: dict[int, str]
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
    total, result = np.zeros_like(x[:, 0]) + np.reshape(first, (-1, 1)), np.empty_like(x)
    decay = np.reshape(decay, (-1, 1))
    for t in range(x.shape[1]):
        result[:, t] = total = decay * total + x[:, t]
    return result


def _mean(x: Array, decay: Array) -> Array:
    """Averages that forget and begin at 0."""
    return _sums((1 - decay) * x, decay)


def _count(x: Array) -> Array:
    return np.arange(1, x.shape[1] + 1)[:, None]


def _unbiased(x: Array, decay: Array, ahead: int = 0) -> Array:
    return x / (1 - decay ** (_count(x) + ahead))


def _over(x: Array, denominator: Array) -> Array:
    positive = denominator > 0
    return np.where(positive, x / np.where(positive, denominator, 1.0), 0.0)


def _before(x: Array) -> Array:
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
    return run.rates[:, None] * np.sign(n[B1] * _before(_mean(g, n[B2])) + (1 - n[B1]) * g)


def _sign(g: Array, n: Numbers, run: Run) -> Array:
    return run.rates[:, None] * np.sign(g)


def _signum(g: Array, n: Numbers, run: Run) -> Array:
    return run.rates[:, None] * np.sign(_mean(g, n[B1]))


def _adagrad(g: Array, n: Numbers, run: Run) -> Array:
    rates = run.rates[:, None] / (1 + (_count(g) - 1) * n[B2])
    return rates * _over(g, np.sqrt(_sums(g * g, 1.0, n[EXTRA])) + n[EPS])


def _adadelta(g: Array, n: Numbers, run: Run) -> Array:
    square, step, eps = _mean(g * g, n[B2]), np.empty_like(g), n[EPS][:, 0]
    rho, seen = n[B2][:, 0], np.zeros_like(g[:, 0])
    for t in range(g.shape[1]):
        step[:, t] = np.sqrt((seen + eps) / (square[:, t] + eps)) * g[:, t]
        seen = rho * seen + (1 - rho) * step[:, t] ** 2
    return run.rates[:, None] * step


def _moments(g: Array, n: Numbers) -> tuple[Array, Array]:
    """The averages of the gradients and of their squares, without their bias."""
    return _unbiased(_mean(g, n[B1]), n[B1]), _unbiased(_mean(g * g, n[B2]), n[B2])


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
        return run.rates[:, None] * _over(_mean(g, n[B1]), denominator(n, _mean(g * g, n[B2])))

    return rule


def _rmsprop(denominator: Any, corrected: bool) -> Rule:
    def rule(g: Array, n: Numbers, run: Run) -> Array:
        square = _mean(g * g, n[B2])
        return run.rates[:, None] * _over(
            g, denominator(n, _unbiased(square, n[B2]) if corrected else square)
        )

    return rule


def _nadam(g: Array, n: Numbers, run: Run) -> Array:
    m, v = _mean(g, n[B1]), _unbiased(_mean(g * g, n[B2]), n[B2])
    ahead = n[B1] * _unbiased(m, n[B1], 1) + (1 - n[B1]) * _unbiased(g, n[B1])
    return run.rates[:, None] * _over(ahead, _outside(n, v))


def _nadam_scheduled(g: Array, n: Numbers, run: Run) -> Array:
    now, after = (n[B1] * (1 - 0.5 * 0.96 ** (n[EXTRA] * (_count(g) + i))) for i in (0, 1))
    product = np.cumprod(now, 1)
    v = _unbiased(_mean(g * g, n[B2]), n[B2])
    own, old = (1 - now) / (1 - product), after / (1 - product * after)
    return run.rates[:, None] * _over(own * g + old * _mean(g, n[B1]), _outside(n, v))


def _amsgrad(g: Array, n: Numbers, run: Run) -> Array:
    m, v = _moments(g, n)
    return run.rates[:, None] * _over(m, _outside(n, np.maximum.accumulate(v, 1)))


def _amsgrad_late(denominator: Any) -> Rule:
    def rule(g: Array, n: Numbers, run: Run) -> Array:
        most = np.maximum.accumulate(_mean(g * g, n[B2]), 1)
        m = _unbiased(_mean(g, n[B1]), n[B1])
        return run.rates[:, None] * _over(m, denominator(n, _unbiased(most, n[B2])))

    return rule


def _amsgrad_biased(g: Array, n: Numbers, run: Run) -> Array:
    most = np.maximum.accumulate(_mean(g * g, n[B2]), 1)
    return run.rates[:, None] * _over(_mean(g, n[B1]), _outside(n, most))


def _largest(x: Array, decay: Array) -> Array:
    most, result = np.zeros_like(x[:, 0]), np.empty_like(x)
    for t in range(x.shape[1]):
        result[:, t] = most = np.maximum(decay[:, 0] * most, x[:, t])
    return result


def _adamax(g: Array, n: Numbers, run: Run) -> Array:
    m = _unbiased(_mean(g, n[B1]), n[B1])
    return run.rates[:, None] * _over(m, _largest(np.abs(g) + n[EPS], n[B2]))


def _adamax_outside(g: Array, n: Numbers, run: Run) -> Array:
    m = _unbiased(_mean(g, n[B1]), n[B1])
    return run.rates[:, None] * _over(m, _largest(np.abs(g), n[B2]) + n[EPS])


def _adabelief(g: Array, n: Numbers, run: Run) -> Array:
    m = _mean(g, n[B1])
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
    v = _unbiased(_mean(g * g, n[B2]), n[B2])
    return run.rates[:, None] * _unbiased(_mean(_over(g, _outside(n, v)), n[B1]), n[B1])


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
    return np.where(turned, 0.0, _before(steps))


_B1, _B2, _MOMENTA = (0, (0.6, 0.9)), (0, (0.8, 0.9, 0.97, 0.995)), (0, (0.5, 0.9, 0.99))
_EPS, _EPS2, _FIRST = (1, (1e-4, 0.3)), (2, (1e-6, 0.1)), (2, (0.1, 10.0))
_ADAM: dict[str, Any] = {
    "starts": {B1: _B1, B2: _B2, EPS: _EPS}, "shown": {B1: "b1", B2: "b2", EPS: "eps"},
    "needs": (B1,), "drops": (EPS,), "corrected": (B1, B2),
}  # fmt: skip
_ROOTED = _ADAM | {"starts": {B1: _B1, B2: _B2, EPS: _EPS2}}
_BUFFER: dict[str, Any] = {
    "starts": {B1: _MOMENTA}, "shown": {B1: "momentum"}, "needs": (B1,),
}  # fmt: skip
_OF_STEPS = "the learning rate in the momentum buffer"
_BIASED = "momentum before the division without bias correction"
_SIGNS = "sign descent with momentum of the signs"


def _soft_kinds(name: str, rule: Rule, more: dict[int, Any], detail: str) -> list[Kind]:
    return [
        Kind(
            name, _soft(rule, inside), more | {EPS: _EPS2 if inside else _EPS},
            {B1: "momentum", EPS: "eps"}, detail, "epsilon inside the root" if inside else "",
            needs=tuple(more), drops=(EPS,),
        )
        for inside in (False, True)
    ]  # fmt: skip


SGD = [
    Kind("SGD", _sgd, {}, {}),
    Kind("SGD with momentum", _momentum, **_BUFFER),
    Kind("SGD with Nesterov momentum", _nesterov, **_BUFFER),
    Kind(
        "SGD with momentum", _dampened, {B1: _MOMENTA, B2: (0, (0.1, 0.9))},
        {B1: "momentum", B2: "dampening"}, "dampening from the second step on", needs=(B1, B2),
    ),
]  # fmt: skip
SGD_OF_STEPS = [
    Kind("SGD with momentum", _momentum_of_steps, detail=_OF_STEPS, **_BUFFER),
    Kind("SGD with Nesterov momentum", _nesterov_of_steps, detail=_OF_STEPS, **_BUFFER),
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
            more | {EPS: _EPS}, {B1: "momentum", EPS: "eps"},
            f"the norm of {'each leaf' if leaf else 'all gradients'}",
            needs=tuple(more), drops=(EPS,),
        )
        for leaf in (False, True)
        for rule, more in ((_sgd, {}), (_momentum, {B1: _MOMENTA}))
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
    Kind("Adadelta", _adadelta, {B2: _B2, EPS: (2, (1e-8, 1e-5, 1e-3, 0.1))}, {B2: "rho", EPS: "eps"}),
    Kind("Adam", _adam(_outside), **_ADAM),
    Kind("Adam", _adam(_inside), place="epsilon inside the root", **_ROOTED),
    Kind("Adam", _adam(_hat), place="epsilon beside the uncorrected root", **_ADAM),
    Kind("Nadam", _nadam, **_ADAM),
    Kind(
        "Nadam", _nadam_scheduled,
        **_ADAM | {
            "starts": _ADAM["starts"] | {EXTRA: (0, (4e-3, 1.0))},
            "shown": _ADAM["shown"] | {EXTRA: "momentum_decay"},
        },
    ),
    Kind("AMSGrad", _amsgrad, detail="the maximum after the bias correction", **_ADAM),
    Kind(
        "AMSGrad", _amsgrad_late(_outside), detail="the maximum before the bias correction",
        **_ADAM,
    ),
    Kind(
        "AMSGrad", _amsgrad_late(_hat), detail="the maximum before the bias correction",
        place="epsilon beside the uncorrected root", **_ADAM,
    ),
    Kind("AMSGrad", _amsgrad_biased, detail="no bias correction", **_ADAM | {"corrected": ()}),
    Kind("Adamax", _adamax, **_ADAM | {"corrected": (B1,)}),
    Kind(
        "Adamax", _adamax_outside, place="epsilon after the maximum",
        **_ADAM | {"corrected": (B1,)},
    ),
    Kind(
        "AdaBelief", _adabelief,
        **_ADAM | {
            "starts": _ADAM["starts"] | {EXTRA: (2, (1e-8,))},
            "shown": _ADAM["shown"] | {EXTRA: "eps_root"}, "drops": (EXTRA, EPS),
        },
    ),
    *(
        Kind(
            "Yogi", _yogi(same_start),
            detail="both averages start there" if same_start else "",
            **_ADAM | {
                "starts": {
                    B1: (0, (0.5, 0.7, 0.9)), B2: (0, (0.8, 0.85, 0.9, 0.94, 0.97, 0.99, 0.998)),
                    EPS: (1, (1e-3, 0.1)), EXTRA: (2, (1e-6, 0.1)),
                }, "needs": (),
                "shown": _ADAM["shown"] | {EXTRA: "initial_accumulator_value"},
                "drops": (EXTRA, EPS), "jumps": True,
            },
        )
        for same_start in (False, True)
    ),
    Kind("RAdam", _radam, moved=(B2,), **_ADAM),
    Kind("LaProp", _laprop, **_ADAM),
    Kind(_BIASED, _biased(_outside), **_ADAM | {"corrected": ()}),
    Kind(
        _BIASED, _biased(_inside), place="epsilon inside the root", **_ROOTED | {"corrected": ()}
    ),
    *(
        Kind(
            "Rprop", rule, {B1: (0, (0.5,)), EXTRA: (0, (1.2,))} | bounds,
            {B1: "eta_minus", EXTRA: "eta_plus", B2: "min_step", EPS: "max_step"}, detail,
            drops=tuple(bounds), bounded=bool(bounds),
        )
        for rule, detail in ((_rprop, ""), (_rprop_late, "each step taken one step late"))
        for bounds in ({}, {B2: (0, (0.01,)), EPS: (0, (100.0,))})
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


# The search.


_UNKNOWN = np.full(len(COLUMNS), np.inf)


@dataclasses.dataclass(frozen=True)
class _Fitted:
    hypotheses: Hypotheses  # one row
    cost: float
    deviation: Array  # [n], on the scale of `_fit`
    largest: float = np.inf  # the largest residual in units of rounding
    mean: float = np.inf

    @property
    def explains(self) -> bool:
        return self.largest <= LIMIT


def others(run: Run) -> list[Other]:
    """The optimizers that explain a run, the simplest first; or the three that come closest.

    Options are tried only as long as nothing explains the run without them. What is an RMSprop is
    not explained, except where the two are the same: where epsilon hides the second moment, and
    where the decay is 0.
    """
    if not (run.changes * run.valid).any():
        return [Other("no movement at all", {}, "no movement at all", True, 0.0)]
    with np.errstate(all="ignore"):
        return _others(run)


def _others(run: Run) -> list[Other]:
    few, some, every = _few(run, 10, 16), _few(run, 200, 64), _few(run, None, 2_000_000)
    close: list[tuple[float, Hypotheses]] = []
    for pairs in _stages(run):
        options = {option for _, option in pairs}
        found = [fitted for fitted in _signs(every) if fitted.hypotheses.option in options]
        near = _shortlist(pairs, few)
        for value, hypotheses in near:
            if value < 1e-6:
                found += _explaining(hypotheses, some, every)
        if found:
            return _distinct(found, every)
        close += near[:3]
    rows = sorted(close, key=lambda pair: pair[0])[:3]
    return [_other(_Fitted(hypotheses, value, _UNKNOWN), every) for value, hypotheses in rows]


def _stages(run: Run) -> list[list[tuple[Kind, Option]]]:
    """The kinds with the options to try, the simplest first."""
    varied = bool(np.ptp(run.rates) > 0)
    sgd = SGD + SGD_OF_STEPS * varied
    kinds = [*sgd, *SIGNS, *SIGNS_OF_STEPS * varied, *RMSPROP, *ADAPTIVE]
    decays = [Option(DECOUPLED), *[Option(UNSCALED)] * varied, Option(L2)]
    clips = [CLIP_VALUE, CLIP_LEAF, *[CLIP_ALL] * int(run.leaf.max(initial=0) > 0)]
    product = itertools.product
    return [
        [(PLAIN_DECAY, Option()), *product(kinds, [Option()])],
        [*product(kinds, decays), *product(sgd, [Option(clip=c) for c in clips])],
        [*product(sgd, [Option(d.decay, c) for d in decays for c in clips])],
    ]


def _few(run: Run, steps: int | None, most: int) -> Run:
    """The first steps of some columns, from those that move little to those that move much."""
    run = run if steps is None else run.steps(min(steps, len(run.grads)))
    most = most if steps else max(most // len(run.grads), 1)
    if run.grads.shape[1] <= most:
        return run
    sizes = np.argsort(np.abs(run.grads).max(0))
    return run.columns(np.sort(sizes[np.linspace(0, len(sizes) - 1, most).astype(int)]))


def _shortlist(pairs: list[tuple[Kind, Option]], run: Run) -> list[tuple[float, Hypotheses]]:
    """The kinds that come closest on a short run, with their costs; fewer as they are fitted."""
    started = [_started(Hypotheses(k, o, _starts(k, o, run)), run) for k, o in pairs]
    started = [(costs, hypotheses) for hypotheses, costs in started if np.isfinite(costs).any()]
    started.sort(key=lambda pair: pair[0].min())
    fits: list[tuple[float, Hypotheses]] = []
    for costs, hypotheses in started[:32]:
        rows = np.argsort(costs, kind="stable")[: 6 if hypotheses.kind.jumps else 2]
        fits.append(_best(hypotheses.take(rows[np.isfinite(costs[rows])]), run, 4))
    for count, further in ((16, _further), (8, _closer)):
        fits.sort(key=lambda pair: pair[0])
        fits = [further(hypotheses, run) for _, hypotheses in fits[:count]]
    return sorted(fits, key=lambda pair: pair[0])


def _further(hypotheses: Hypotheses, run: Run) -> tuple[float, Hypotheses]:
    """One hypothesis after a few more iterations, and its cost."""
    return _best(hypotheses, run, 5)


def _closer(hypotheses: Hypotheses, run: Run) -> tuple[float, Hypotheses]:
    """One hypothesis after many more, without the columns that jump in between."""
    value, hypotheses = _best(hypotheses, run, 6)
    if hypotheses.kind.jumps and value > 1e-9:
        hypotheses = _best(hypotheses, _trimmed(hypotheses, run), 8)[1]
    return _best(hypotheses, run, 8)


def _best(hypotheses: Hypotheses, run: Run, iterations: int) -> tuple[float, Hypotheses]:
    """The best of them after some iterations, and its cost."""
    fits, value, _ = fit(simulate, hypotheses, run, hypotheses.free, iterations, [B1, B2])
    best = int(value.argmin())
    return float(value[best]), fits.take([best])


def _starts(kind: Kind, option: Option, run: Run) -> Array:
    """The numbers [B, n] to begin with."""
    sizes = np.abs(run.grads[run.valid & (run.grads != 0)])
    size = float(np.median(sizes)) if sizes.size else 1.0
    values: dict[int, Iterable[float]] = {
        column: [value * size**power for value in values]
        for column, (power, values) in kind.starts.items()
    }
    if option.decay == L2:
        params = np.abs(run.params[:-1][run.valid])
        share = size / max(float(np.median(params[params > 0])), 1e-30) if params.any() else size
        values |= {LAMBDA: [share * x for x in (0.01, 0.1, 1.0, 10.0)], SIGN: [1.0, -1.0]}
    if option.clip != NONE:
        norms = {CLIP_LEAF: run.leaf_norm, CLIP_ALL: run.norm}.get(option.clip, run.grads)
        norms = np.abs(norms[norms != 0])
        values[BOUND] = np.quantile(norms, (0.15, 0.4, 0.65, 0.9)) if norms.size else [1.0]
    products = np.array(list(itertools.product(*values.values())))
    numbers = np.zeros((len(products), len(COLUMNS)))
    numbers[:, [LR, SIGN]] = 1.0
    numbers[:, list(values)] = products
    return numbers


def _started(hypotheses: Hypotheses, run: Run) -> tuple[Hypotheses, Array]:
    """The hypotheses at the rates, and the decoupled decays, that suit them; and their costs."""
    kind, option, numbers = hypotheses.kind, hypotheses.option, hypotheses.numbers.copy()
    bare = option if option.decay == L2 else Option(clip=option.clip)
    change = simulate(Hypotheses(kind, bare, numbers), run)
    weight, observed = (run.valid / run.scale) ** 2, run.changes
    with np.errstate(all="ignore"):
        along = np.einsum("btn,tn->b", change, observed * weight)
        length = np.einsum("btn,btn,tn->b", change, change, weight)
        rate, left = along / length, (observed**2 * weight).sum() - along**2 / length
        if option.decay in (DECOUPLED, UNSCALED):  # two numbers at once
            scale = run.rates[:, None] if option.decay == DECOUPLED else 1.0
            share = -scale * run.params[:-1]
            cross = np.einsum("btn,tn->b", change, share * weight)
            own, seen = (share**2 * weight).sum(), (share * observed * weight).sum()
            determinant = length * own - cross**2
            rate = (along * own - seen * cross) / determinant
            lost = (seen * length - along * cross) / determinant
            left = (observed**2 * weight).sum() - along * rate - seen * lost
            lost = lost / np.abs(rate) if option.decay == DECOUPLED else lost
            numbers[:, LAMBDA] = np.maximum(np.nan_to_num(np.abs(lost)), 1e-12)
    rate = np.nan_to_num(rate)
    numbers[:, SIGN] *= np.where((rate < 0) & (option.decay != L2), -1.0, 1.0)
    numbers[:, LR] = np.maximum(np.abs(rate), 1e-300)
    if kind.bounded:
        first = np.abs(observed[np.argmax((observed * run.valid).any(1))])
        numbers[:, LR] = np.median(first[first > 0])
        numbers = _bounded(hypotheses.of(numbers), run).numbers
    wrong = (rate == 0) | ((rate < 0) & ((option.decay == L2) | (kind is PLAIN_DECAY)))
    return hypotheses.of(numbers), np.where(wrong, np.inf, np.nan_to_num(left, nan=np.inf))


def misfit(hypotheses: Hypotheses, run: Run) -> tuple[float, float]:
    """The largest residual of one hypothesis, and their root mean square, in units of rounding.

    What rounding does is seen by moving gradients and parameters by some of it: a sum that cancels
    or a sign that is nearly 0 is then allowed what it does. To this come the rounding of the step,
    growing with the number of terms, of a power that corrects a bias, and of the parameters.
    """
    change = simulate(hypotheses, run)[0]
    random, bound = np.random.default_rng(0), np.zeros_like(change)
    for _ in range(_DRAWS):
        moved = dataclasses.replace(
            run,
            grads=run.grads * (1 + _MOVED * run.unit * random.choice((-1, 1), run.grads.shape)),
            params=run.params * (1 + _MOVED * run.unit * random.choice((-1, 1), run.params.shape)),
        )
        numbers = hypotheses.numbers.copy()
        numbers[:, list(hypotheses.kind.moved)] *= 1 + run.unit * random.choice((-1, 1))
        changed = simulate(hypotheses.of(numbers), moved)[0]
        bound = np.maximum(bound, np.abs(changed - change))
    count = np.arange(1, len(change) + 1)[:, None]
    relative = 4 + 2 * np.sqrt(count)
    for column in hypotheses.kind.corrected:
        decay = hypotheses.numbers[0, column]
        if 1 - decay < 256 * run.unit:  # no such decay can be held apart from 1
            return np.inf, np.inf
        relative = relative + 2 / (1 - decay**count)
    bound += run.unit * relative * np.abs(change)
    bound += run.unit * (np.abs(run.params[1:]) + np.abs(run.params[:-1])) + np.finfo(float).tiny
    ratio = np.nan_to_num(np.abs(change - run.changes) / bound * run.valid, nan=np.inf)
    return float(ratio.max(initial=0.0)), float(np.sqrt((ratio**2).mean()))


def _judged(fitted: _Fitted, run: Run) -> _Fitted:
    largest, mean = misfit(fitted.hypotheses, run)
    return dataclasses.replace(fitted, largest=largest, mean=mean)


def _refitted(hypotheses: Hypotheses, some: Run, every: Run) -> _Fitted:
    """Least squares in rounds, damped anew: two numbers that do the same leave no other hold."""
    if hypotheses.kind.bounded:
        hypotheses = _bounded(hypotheses, some)
    for _ in range(2):
        hypotheses = _best(hypotheses, some, 10)[1]
    free = hypotheses.free
    fits, value, deviation = fit(simulate, hypotheses, some, free, 10, [B1, B2])
    return _judged(_Fitted(fits, float(value[0]), deviation[0]), every)


def _explaining(hypotheses: Hypotheses, some: Run, every: Run) -> list[_Fitted]:
    """The hypothesis fitted to the whole run, without what it does not need, if it explains it.

    It does not if what the kind needs is not there: then it is another one.
    """
    kind, at = hypotheses.kind, hypotheses.numbers[0]
    for column in kind.needs:
        if at[column] < 1e-4 and _refitted(_without(hypotheses, column), some, every).explains:
            return []
    fitted = _refitted(hypotheses, some, every)
    if kind.jumps and not fitted.explains:
        fitted = _refitted(_best(fitted.hypotheses, _trimmed(fitted.hypotheses, some), 10)[1],
                           some, every)  # fmt: skip
    for column in kind.drops:  # a number that is 0 is never reached
        if not fitted.explains:
            less = _refitted(_without(hypotheses, column), some, every)
            fitted = less if less.explains else fitted
    if not fitted.explains:
        return []
    for column in (*kind.needs, *kind.drops):
        if fitted.deviation[column] < 0.02 or not fitted.hypotheses.free[0, column]:
            continue
        less = _refitted(_without(fitted.hypotheses, column), some, every)
        if less.explains and less.mean <= 1.2 * fitted.mean + 0.02:
            if column in kind.needs:
                return []
            fitted = less
    return [fitted]


def _bounded(hypotheses: Hypotheses, run: Run) -> Hypotheses:
    """The bounds, where there are any, at the smallest and the largest step of the run."""
    sizes = np.abs(run.changes[run.valid & (run.changes != 0)])
    least, most = np.quantile(sizes, (0.0, 1.0)) / hypotheses.numbers[0, LR]
    numbers = hypotheses.numbers.copy()
    ends = np.array([min(least, 1 - 1e-9), max(most, 1.0)])
    numbers[:, [B2, EPS]] = np.where(numbers[:, [B2, EPS]] > 0, ends, 0.0)
    return hypotheses.of(numbers)


def _without(hypotheses: Hypotheses, column: int) -> Hypotheses:
    """The hypotheses with one number 0."""
    numbers = hypotheses.numbers.copy()
    numbers[:, column] = 0.0
    return hypotheses.of(numbers)


def _trimmed(hypotheses: Hypotheses, run: Run) -> Run:
    """The run without the columns that fit worst: a jump in these hides where the others lead."""
    left = (simulate(hypotheses, run)[0] - run.changes) * run.valid / run.scale
    worst = np.abs(left).max(0)
    return dataclasses.replace(run, valid=run.valid & (worst <= np.median(worst)))


def _distinct(found: list[_Fitted], run: Run) -> list[Other]:
    """The simplest, each name once."""
    counts = [int(fitted.hypotheses.free.sum()) for fitted in found]
    simplest = [fitted for fitted, n in zip(found, counts, strict=True) if n == min(counts)]
    simplest.sort(key=lambda fitted: fitted.mean)
    names = {fitted.hypotheses.kind.name: fitted for fitted in reversed(simplest)}
    return [_other(names[name], run) for name in reversed(names) if name != "RMSprop"]


# What is a sign.


def _signs(run: Run) -> list[_Fitted]:
    """Sign descent, Signum or Lion, whichever is the simplest, if the steps are signs."""
    for decayed, sign in itertools.product((False, True), (1.0, -1.0)):
        grads = sign * run.grads
        solved, deviation, signs = _signs_seen(grads, run, decayed)
        if (solved[: 1 + decayed] <= 0).any():
            continue
        option, row = Option(DECOUPLED if decayed else NONE), np.zeros((1, len(COLUMNS)))
        row[0, [LR, LAMBDA, SIGN]] = solved[0], solved[1] / solved[0], sign
        spread = np.zeros(len(COLUMNS))
        spread[[LR, LAMBDA]] = deviation
        for kind, *numbers in _sign_rules(grads, signs):
            row[0, [B1, B2]] = numbers
            fitted = _judged(_Fitted(Hypotheses(kind, option, row.copy()), 0.0, spread), run)
            if fitted.explains:
                return [fitted]
    return []


def _signs_seen(grads: Array, run: Run, decayed: bool) -> tuple[Array, Array, Array]:
    """The rate and the decay times the rate, their errors, and the signs [T, N] of the steps."""
    moving = np.logical_or.accumulate(grads != 0) & run.valid & (run.rates != 0)[:, None]
    size = np.abs(run.params[1:]) + np.abs(run.params[:-1]) + np.abs(run.changes)
    weight = np.where(moving, np.abs(run.rates[:, None]) / (size + np.finfo(float).tiny), 0.0)
    with np.errstate(all="ignore"):
        seen = np.where(moving, run.changes / run.rates[:, None], 0.0)
    before, solved, signs = run.params[:-1] * moving, np.zeros(2), np.zeros_like(grads)
    basis = np.zeros((grads.size, 2))
    for _ in range(8):
        signs = -np.sign(seen + solved[1] * before)
        basis = np.stack([-(signs * weight).ravel(), -(before * weight * decayed).ravel()], 1)
        solved = np.linalg.lstsq(basis, (seen * weight).ravel(), rcond=None)[0]
    left = (seen * weight).ravel() - basis @ solved
    length = np.linalg.norm(basis, axis=0) * np.abs(solved) + np.finfo(float).tiny
    return solved, np.sqrt((left**2).mean()) / length, signs


def _sign_rules(grads: Array, signs: Array) -> Iterable[tuple[Any, ...]]:
    """Kinds with b1 and b2 that give these signs, the simplest first."""
    if (np.sign(grads) == signs)[signs != 0].all():
        yield SIGN_DESCENT, 0.0, 0.0
        return
    found = _feasible(lambda decays: _signum_gap(grads, signs, decays))
    if found:
        yield SIGNUM, _between(*found), 0.0
    found = _feasible(lambda decays: np.divide(*_ratios(grads, signs, decays)))
    if found:
        decay = _between(*found)
        low, high = (x[0] for x in _ratios(grads, signs, np.array([decay])))
        yield LION, _between(low / (1 + low), 1 / (1 + 1 / high)), decay


def _signum_gap(grads: Array, signs: Array, decays: Array) -> Array:
    low, high = _ratios(grads, signs, decays)
    own = decays / (1 - decays)
    return np.maximum(low / own, own / high)


def _feasible(gap: Callable[[Array], Array]) -> tuple[float, float] | None:
    """The decays around the least gap where it is below 1."""
    logits = np.linspace(-6.0, 9.0, 301)
    at, width = 0.0, 0.05
    for width in (0.05, 2.5e-3, 1.25e-4, 6e-6):
        gaps = gap(_decays(logits))
        at = float(logits[int(np.argmin(gaps))])
        if gaps.min() < 1:
            break
        logits = at + width * np.linspace(-1, 1, 41)
    else:
        return None
    ends = []
    for toward in (-8.0, 12.0):
        steps = np.linspace(at, toward, 401)
        wrong = gap(_decays(steps)) >= 1
        first = int(np.argmax(wrong)) if wrong.any() else len(steps)
        inside, outside = steps[first - 1], steps[min(first, len(steps) - 1)]
        for _ in range(4):
            steps = np.linspace(inside, outside, 12)
            wrong = gap(_decays(steps)) >= 1
            first = int(np.argmax(wrong)) if wrong.any() else len(steps)
            inside, outside = steps[max(first - 1, 0)], steps[min(first, len(steps) - 1)]
        ends.append(float(_decays(inside)))
    return ends[0], ends[1]


def _decays(logits: Any) -> Any:
    return 1 / (1 + np.exp(-logits))


def _ratios(grads: Array, signs: Array, decays: Array) -> tuple[Array, Array]:
    """Between which ratios of mean to gradient the signs are these, for each decay."""
    mean = _before(
        _mean(np.broadcast_to(grads, (len(decays), *grads.shape)), decays[:, None, None])
    )
    with np.errstate(all="ignore"):
        ratio = -grads / mean
    helps, hurts = signs * mean > 0, signs * mean < 0
    low = np.where(helps, ratio, 0.0).max((1, 2), initial=0.0)
    high = np.where(hurts, ratio, np.inf).min((1, 2), initial=np.inf)
    return np.maximum(low, 1e-12), np.clip(high, 1e-300, 1e12)


# What is said.


def _other(fitted: _Fitted, run: Run) -> Other:
    snapped = _snapped(fitted, run)
    if fitted.explains and misfit(snapped, run)[0] <= LIMIT:
        hypotheses = snapped
    else:
        hypotheses = fitted.hypotheses
    kind, option = hypotheses.kind, hypotheses.option
    values = dict(zip(range(len(COLUMNS)), hypotheses.numbers[0].tolist(), strict=True))
    if kind.bounded:
        values |= {B2: values[B2] * values[LR], EPS: values[EPS] * values[LR]}
    bound = "clip_value" if option.clip == CLIP_VALUE else "clip_norm"
    shown = {LR: "lr"} | kind.shown | {LAMBDA: "weight_decay", BOUND: bound}
    free = hypotheses.free[0]
    numbers = {name: values[column] for column, name in shown.items() if free[column]}
    name = {("Adam", DECOUPLED): "AdamW"}.get((kind.name, option.decay), kind.name)
    written = [f"{key}={value!r}" for key, value in numbers.items()]
    written += ["maximize=True"] * (values[SIGN] < 0)
    notes = [kind.detail, kind.place if free[EPS] or free[EXTRA] else ""]
    notes += [_DECAYS[option.decay] * (name != "AdamW"), _CLIPS[option.clip]]
    unseen = [shown[c] for c in kind.drops if not (free[c] or kind.bounded)]
    notes += [f"{' and '.join(unseen)} not seen" if unseen else ""]
    text = ", ".join([f"{name}({', '.join(written)})", *filter(None, notes)])
    change = (simulate(hypotheses, run)[0] - run.changes) * run.valid
    error = np.linalg.norm(change) / np.linalg.norm(run.changes * run.valid)
    return Other(name, numbers, text, fitted.explains, float(error))


_DECAYS = {
    NONE: "", DECOUPLED: "decoupled weight decay", L2: "L2",
    UNSCALED: "decoupled weight decay that the rate does not scale",
}  # fmt: skip
_CLIPS = {
    NONE: "", CLIP_VALUE: "clipped by value", CLIP_LEAF: "clipped by the norm of each leaf",
    CLIP_ALL: "clipped by the norm of all gradients",
}  # fmt: skip


def _snapped(fitted: _Fitted, run: Run) -> Hypotheses:
    """The numbers as the shortest decimals within their uncertainty."""
    row = fitted.hypotheses.numbers[0].copy()
    unit = 8 * run.unit + 2 * run.unit * sum(
        1 / (1 - row[column]) for column in fitted.hypotheses.kind.corrected
    )
    for column in np.flatnonzero(fitted.hypotheses.free[0]):
        spread = 5 * fitted.deviation[column] + unit
        value = row[column]
        slope = value * (1 - value) if column in (B1, B2) else value
        row[column] = _shortest(value, max(slope * min(spread, 1.0), 4 * run.unit * value))
    return fitted.hypotheses.of(row[None])


def _shortest(value: float, tolerance: float) -> float:
    """The decimal of the fewest digits this near."""
    decimals = (float(f"{value:.{digits}g}") for digits in range(1, 17))
    return next((x for x in decimals if abs(x - value) <= tolerance), float(value))


def _between(low: float, high: float) -> float:
    """The decimal of the fewest digits between two numbers."""
    return _shortest((low + high) / 2, (high - low) / 2)
