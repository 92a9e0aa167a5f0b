"""RMSprop as papers and repositories set it: one call each, its numbers and their source beside it.

    tx = recipes.efficientnet(batch_size=4096)
    tx = recipes.dqn()

A recipe is data. `record` gives it as a `Recipe`: the dialect, every number, the schedule in steps,
the weight decay and what it leaves out, the clipping, the average of the weights. `build` makes a
transformation of one, in this order, of which most have only the last:

    weight decay, added to the gradient  →  clipping  →  the dialect, and the rate in it

The arguments of a recipe are what its source varied, with the source's values where it has any. All
are greater than 0. A schedule is called with the number of updates made before. No number is from
memory: each was read in the repository, at the commit of `Recipe.source`. What a paper says, and
its code does not, is not here. To change what a source did not, change the record:

    tx = recipes.build(dataclasses.replace(recipes.record("efficientnet"), mask=mask))

A loss that is a sum must stay one, or ε and the bound on the gradients are other numbers: see
`Recipe.loss`, and "A sum in place of a mean" in `docs/porting.md`.

Every recipe returns a transformation whose state is that of its dialect, or a tuple with it at the
end. It raises a ValueError or a TypeError that names the argument.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec, cast

import jax
import numpy as np
import optax

from . import dialects
from ._link import checked
from ._rmsprop import rmsprop
from ._schedules import Linear as Linear
from ._schedules import Ramp as Ramp
from ._schedules import Stages as Stages
from ._schedules import Staircase as Staircase
from ._schedules import WarmUp as WarmUp
from .dialects import adaptive_clip_by_norm, clip, clip_by_norm
from .links import (
    Mask,
    add_decayed_weights,
    chain,
    ema,
    scale_by_learning_rate,
    scale_by_rms,
)

_Arguments = ParamSpec("_Arguments")
_Transformation = optax.GradientTransformationExtraArgs


class Source(NamedTuple):
    """Where a recipe can be read."""

    paper: str
    repository: str  # owner/name, on GitHub
    commit: str
    path: str


@dataclasses.dataclass(frozen=True, repr=False)
class Decays:
    """A mask by axes and names: True for a leaf of enough axes whose path has no such word."""

    axes: int = 0
    but: str = ""  # a regular expression, in any case

    def __repr__(self) -> str:
        return f"recipes.Decays(axes={self.axes!r}, but={self.but!r})"

    def __call__(self, params: optax.Params) -> Any:
        """Return a tree of booleans like the parameters."""

        def decays(path: Any, p: Any) -> bool:
            name = jax.tree_util.keystr(path)
            left_out = self.but and re.search(self.but, name, re.IGNORECASE)
            return np.ndim(p) >= self.axes and not left_out

        return jax.tree_util.tree_map_with_path(decays, params)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A published setting."""

    dialect: str  # a function of `dialects`, "rmsprop", or "laprop"
    learning_rate: float | Staircase | Stages | WarmUp | Linear
    decay: float
    eps: float
    momentum: float = 0.0
    centered: bool = False  # as an argument; `graves` always is
    weight_decay: float = 0.0  # coupled: a part of the gradient
    mask: Mask | None = None  # where weights decay, as in `rmspropw`
    clip: optax.GradientTransformation | None = None  # of the gradients, before RMSprop
    average: float | Ramp | None = None  # the decay of the average of weights that is evaluated
    loss: Literal["mean", "sum"] = "mean"  # over a batch
    beside: str = ""  # what belongs to the recipe and not to the optimizer
    source: Source | None = None


RECORDS: dict[str, Callable[..., Recipe]] = {}


def record(name: str, **arguments: Any) -> Recipe:
    """The numbers of a recipe.

    Args:
        name: Of a function of this module.
        arguments: As that function has them.

    Returns:
        A frozen record. `dataclasses.replace` changes a number of it.

    Raises:
        ValueError: if there is no such recipe.

    Example:
        >>> from optax_rmsprop import recipes
        >>> found = recipes.record("torchbeast", learning_rate=4e-4, batch_size=4, total_steps=3e7)
        >>> print(found.dialect, found.decay, found.eps, found.learning_rate, found.loss)
        torch 0.99 0.01 recipes.Linear(learning_rate=0.0004, steps=93750.0, end=None, unit=1) sum
    """
    if name not in RECORDS:
        raise ValueError(f"record: there is no recipe {name!r}; there are {', '.join(RECORDS)}")
    return RECORDS[name](**arguments)


def build(recipe: Recipe) -> _Transformation:
    """The transformation that a record describes.

    Args:
        recipe: Of `record`, or one of your own.

    Raises:
        ValueError, TypeError: as its dialect.

    Example:
        >>> import dataclasses
        >>> from optax_rmsprop import dialects, recipes
        >>> recipe = dataclasses.replace(recipes.record("pymarl"), clip=None)
        >>> assert recipes.build(recipe) == dialects.torch(lr=5e-4, alpha=0.99, eps=1e-5)
    """
    if recipe.dialect not in _RULES:
        raise ValueError(f"build: dialect must be one of {[*_RULES]}, got {recipe.dialect!r}")
    rule, names = _RULES[recipe.dialect]
    numbers = recipe.learning_rate, recipe.decay, recipe.momentum or None, recipe.eps
    options = {"centered": True} if recipe.centered else {}
    step = rule(**dict(zip(names, numbers, strict=True)), **options)
    weight_decay, mask = recipe.weight_decay, recipe.mask
    decay = add_decayed_weights(weight_decay, mask=mask) if weight_decay else None
    before = [link for link in (decay, recipe.clip) if link is not None]
    return chain(*before, step) if before else step


def _laprop(
    learning_rate: Any, decay: float, momentum: float, epsilon: float
) -> optax.GradientTransformationExtraArgs:
    """LaProp: an average, without its bias, of gradients divided by their root mean square."""
    return chain(
        scale_by_rms(decay, epsilon, eps_in_sqrt=False, bias_correction=True),
        ema(momentum),
        scale_by_learning_rate(learning_rate),
    )


_TORCH = "lr", "alpha", "momentum", "eps"
_TENSORFLOW = "learning_rate", "decay", "momentum", "epsilon"
_RULES: dict[str, tuple[Callable[..., _Transformation], tuple[str, ...]]] = {
    "torch": (dialects.torch, _TORCH),
    "timm": (dialects.timm, _TORCH),
    "stable_baselines3": (dialects.stable_baselines3, _TORCH),
    "graves": (dialects.graves, _TORCH),
    "tensorflow1": (dialects.tensorflow1, _TENSORFLOW),
    "rmsprop": (rmsprop, ("learning_rate", "decay", "momentum", "eps")),
    "laprop": (_laprop, _TENSORFLOW),
}


def _recipe(
    paper: str, repository: tuple[str, str], path: str
) -> Callable[[Callable[_Arguments, Recipe]], Callable[_Arguments, _Transformation]]:
    """Make of a function that returns a record one that returns its transformation."""
    source = Source(paper, *repository, path)

    def decorate(
        make: Callable[_Arguments, Recipe],
    ) -> Callable[_Arguments, _Transformation]:
        @functools.wraps(make)
        def sourced(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Recipe:
            return dataclasses.replace(make(*args, **kwargs), source=source)

        known = cast(Any, checked())(sourced)
        RECORDS[make.__name__] = known

        @functools.wraps(make)
        def transformation(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Transformation:
            return build(known(*args, **kwargs))

        signature = inspect.signature(make).replace(return_annotation=_Transformation)
        cast(Any, transformation).__signature__ = signature
        transformation.__doc__ = (
            f"{inspect.getdoc(make)}\n\nSource: {paper}; {repository[0]}, {path}."
        )
        return transformation

    return decorate


# The training images of ImageNet, which the sources divide by the batch.
_IMAGENET = 1281167

_TPU = "tensorflow/tpu", "7dc921f846c9e4071f3884b768a7ddf521272a49"
_TIMM = "huggingface/pytorch-image-models", "aa4b5850c1543fa488abf260f18390eda46cf85d"
_LUA_DQN = "google-deepmind/dqn", "9d9b1d13a2b491d6ebd4d046740c511c662bbe0f"
_ZOO = "google-deepmind/dqn_zoo", "45061f4bbbcfa87d11bbba3cfc2305a650a41c26"
_DOPAMINE = "google/dopamine", "5873f5494ee0c2d7c016d0ab2ad530354fec59d0"
_MINATAR = "kenjyoung/MinAtar", "4241f24685622cfb52f843cab9bbcf385a53484a"
_BASELINES = "openai/baselines", "ea25b9e8b234e6ee1bca43083f8f3cf974143998"
_SB3 = "DLR-RM/stable-baselines3", "e05d2dbe6eda0acd0ef2e316e3e4065677add3eb"
_SB3_ZOO = "DLR-RM/rl-baselines3-zoo", "22e3ff2450fd92033f7f032915e1f64894a09584"
_IMPALA = "google-deepmind/scalable_agent", "6c0c8a701990fab9053fb338ede9c915c18fa2b1"
_TORCHBEAST = "facebookresearch/torchbeast", "0af07b051a2176a8f9fd20c36891ba2bba6bae68"
_CLEANBA = "vwxyzjn/cleanba", "d1f8979c33e4e1c3d4e67f460afcebb42b6889d4"
_PYMARL = "oxwhirl/pymarl", "c971afdceb34635d31b778021b0ef90d7af51e86"
_DREAMER = "danijar/dreamerv3", "e3f02248693a79dc8b0ebd62c93683888ddaccfe"
_DPO = "eric-mitchell/direct-preference-optimization", "f8b8c0f49dc92a430bae41585f9d467d3618fe2f"
_WGAN = "martinarjovsky/WassersteinGAN", "f7a01e82007ea408647c451b9e1c8f1932a3db67"
_CHAR_RNN = "karpathy/char-rnn", "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
_DNC = "google-deepmind/dnc", "f5981c66ac6fe27978014c314c4aba39f1962ee3"
_CAPTIONS = "kelvinxu/arctic-captions", "f4565bfeba9098f54ce9c2495c55aa411fba39b0"

_MATRICES = Decays(axes=2)  # the weights of convolutions and dense layers
_BUT_BATCH_NORM = Decays(but=r"batch_?norm|(?<![a-z])(bn|norm)(?![a-z])")  # biases decay


# Vision


@_recipe("Tan & Le, EfficientNet, 2019", _TPU, "models/official/efficientnet/main.py")
def efficientnet(batch_size: float = 2048, steps_per_epoch: float | None = None) -> Recipe:
    """EfficientNet B0 to B7, as Google trained them on TPUs.

    The first update has a rate of 0, and the rate jumps where the warm-up ends: it has fallen twice
    by then. Biases decay, batch normalization does not: it is known by "BatchNorm", "batch_norm",
    "norm" or "bn" in a leaf's path.

    Args:
        batch_size: The rate is proportional to it.
        steps_per_epoch: Of the data; None is ImageNet's.
    """
    epoch = steps_per_epoch or _IMAGENET / batch_size
    rate = Staircase(0.016 * batch_size / 256, 0.97, every=2.4 * epoch)
    return Recipe(
        "tensorflow1", WarmUp(rate, int(5 * epoch)), decay=0.9, eps=1e-3, momentum=0.9,
        weight_decay=1e-5, mask=_BUT_BATCH_NORM, average=Ramp(0.9999),
        beside="350 epochs, label smoothing 0.1",
    )  # fmt: skip


@_recipe("Tan et al., MnasNet, 2019", _TPU, "models/official/mnasnet/mnasnet_main.py")
def mnasnet(batch_size: float = 1024, steps_per_epoch: float | None = None) -> Recipe:
    """MnasNet, as Google trained it on TPUs: `efficientnet` with half the batch.

    Args:
        batch_size, steps_per_epoch: As in `efficientnet`.
    """
    return RECORDS["efficientnet"](batch_size, steps_per_epoch)


@_recipe("Tan & Le, MixConv, 2019", _TPU, "models/official/mnasnet/mixnet/README.md")
def mixnet(batch_size: float = 1024, steps_per_epoch: float | None = None) -> Recipe:
    """MixNet, with the hyperparameters of `mnasnet`.

    Args:
        batch_size, steps_per_epoch: As in `efficientnet`.
    """
    return RECORDS["efficientnet"](batch_size, steps_per_epoch)


def _inception(batch_size: float, every: int, **options: Any) -> Recipe:
    rate = 0.165 * batch_size / 256
    return Recipe(
        "tensorflow1", Staircase(rate, 0.94, every, least=1e-4 * rate), decay=0.9, eps=1.0,
        momentum=0.9, average=Ramp(0.995), **options,
    )  # fmt: skip


@_recipe("Howard et al., MobileNets, 2017", _TPU, "models/official/mobilenet/mobilenet.py")
def mobilenet_v1_tpu(batch_size: float = 1024, steps_per_epoch: float | None = None) -> Recipe:
    """MobileNet V1 in Google's TPU reference models, which is not the paper's recipe.

    With ε = 1 it is close to SGD with momentum.

    Args:
        batch_size, steps_per_epoch: As in `efficientnet`.
    """
    epoch = steps_per_epoch or _IMAGENET / batch_size
    return _inception(batch_size, 3 * int(epoch), beside="label smoothing 0.1")


@_recipe("Ioffe & Szegedy, Batch normalization, 2015", _TPU,
         "models/experimental/inception/inception_v2.py")  # fmt: skip
def inception_v2_tpu(batch_size: float = 1024, steps_per_epoch: float | None = None) -> Recipe:
    """Inception v2 in Google's TPU reference models, which is not the paper's recipe.

    The weights of convolutions and dense layers decay: leaves of two axes and more.

    Args:
        batch_size, steps_per_epoch: As in `efficientnet`.
    """
    epoch = steps_per_epoch or _IMAGENET / batch_size
    return _inception(
        batch_size, int(3 * epoch), weight_decay=4e-5, mask=_MATRICES,
        beside="200,000 steps, label smoothing 0.1",
    )  # fmt: skip


@_recipe("Szegedy et al., Rethinking Inception, 2016", _TPU,
         "models/experimental/inception/inception_v3.py")  # fmt: skip
def inception_v3_tpu(batch_size: float = 1024, steps_per_epoch: float | None = None) -> Recipe:
    """Inception v3 in Google's TPU reference models, which is not the paper's recipe.

    Args:
        batch_size, steps_per_epoch: As in `efficientnet`.
    """
    epoch = steps_per_epoch or _IMAGENET / batch_size
    return _inception(
        batch_size, int(3 * epoch), weight_decay=4e-5, mask=_MATRICES,
        beside="213,000 steps, label smoothing 0.1, auxiliary head 0.4",
    )  # fmt: skip


@_recipe("Szegedy et al., Inception-v4, 2017", _TPU,
         "models/experimental/inception/inception_v4.py")  # fmt: skip
def inception_v4_tpu(batch_size: float = 256, steps_per_epoch: float | None = None) -> Recipe:
    """Inception v4 in Google's TPU reference models, which is not the paper's recipe.

    Args:
        batch_size, steps_per_epoch: As in `efficientnet`.
    """
    epoch = steps_per_epoch or _IMAGENET / batch_size
    rate = 0.15 * (batch_size / 256) / 0.94 ** ((2 + 1) / 2)
    after = Staircase(rate, 0.94, every=int(2 * epoch), least=1e-4 * rate)
    return Recipe(
        "tensorflow1", Stages((0.001, rate / 3, rate * 2 / 3), epoch, after), decay=0.9, eps=1.0,
        momentum=0.9, weight_decay=4e-5, mask=_MATRICES, average=Ramp(0.995),
        beside="80,000 steps, label smoothing 0.1, auxiliary head 0.4",
    )  # fmt: skip


@_recipe(
    "Real et al., Regularized evolution, 2018", _TPU, "models/official/amoeba_net/amoeba_net.py"
)
def amoebanet_d_tpu(
    steps_per_epoch: float = _IMAGENET // 256,
    learning_rate: float = 0.64,
    epoch_factor: float = 0.9,
    warmup_epochs: float = 3.0,
) -> Recipe:
    """AmoebaNet-D on TPUs, with the flags of the main program, which are not the paper's.

    Args:
        steps_per_epoch: Rounded down. None of the numbers follows the batch, 256.
        learning_rate: Before it falls; 2.56 in the README's fast run, with a batch of 1024.
        epoch_factor: Of the rate, < 1; 0.88 in the fast run.
        warmup_epochs: 0.35 in the fast run.
    """
    epoch, least = int(steps_per_epoch), 1e-4 * learning_rate
    rate = Staircase(learning_rate, epoch_factor, epoch, least=least)
    return Recipe(
        "tensorflow1", WarmUp(rate, int(warmup_epochs * epoch), least=least), decay=0.9, eps=1.0,
        momentum=0.9, weight_decay=4e-5, mask=_MATRICES, average=Ramp(0.9999),
        beside="48 epochs, label smoothing 0.1, auxiliary head 0.4",
    )  # fmt: skip


def _timm(
    steps_per_epoch: float, warmup_epochs: float, rate: float, factor: float = 0.97,
    average: float | None = 0.9999, beside: str = "450 epochs",
) -> Recipe:  # fmt: skip
    epochs, start = int(warmup_epochs), 1e-6
    warm = tuple(start + epoch * (rate - start) / epochs for epoch in range(epochs))
    after = Staircase(rate, factor, every=2.4 * steps_per_epoch, unit=steps_per_epoch)
    return Recipe(
        "timm", Stages(warm, steps_per_epoch, after), decay=0.9, eps=1e-3, momentum=0.9,
        weight_decay=1e-5, mask=Decays(axes=2, but="bias"), average=average,
        beside=f"{beside}, label smoothing 0.1",
    )  # fmt: skip


_SCRIPT = "hfdocs/source/training_script.mdx"


@_recipe("Wightman, timm", _TIMM, _SCRIPT)
def timm_efficientnet_b0(steps_per_epoch: float, warmup_epochs: float = 3) -> Recipe:
    """EfficientNet B0 of timm, on two GPUs with a batch of 384 each.

    The rate changes at the start of epochs alone, and jumps where the warm-up ends. Biases and all
    leaves of one axis do not decay.

    Args:
        steps_per_epoch: Updates in an epoch.
        warmup_epochs: 3 when the command line was published; timm's default is 5 since 2022.
    """
    return _timm(steps_per_epoch, warmup_epochs, 0.048)


@_recipe("Wightman, timm", _TIMM, _SCRIPT)
def timm_efficientnet_b2(steps_per_epoch: float, warmup_epochs: float = 3) -> Recipe:
    """EfficientNet B2 of timm, on two GPUs with a batch of 128 each.

    Args:
        steps_per_epoch, warmup_epochs: As in `timm_efficientnet_b0`.
    """
    return _timm(steps_per_epoch, warmup_epochs, 0.016)


@_recipe("Wightman, timm", _TIMM, _SCRIPT)
def timm_efficientnet_es(steps_per_epoch: float, warmup_epochs: float = 3) -> Recipe:
    """EfficientNet-EdgeTPU-Small of timm, on eight GPUs with a batch of 128 each.

    Args:
        steps_per_epoch, warmup_epochs: As in `timm_efficientnet_b0`.
    """
    beside = "450 epochs, the mean of the 8 best checkpoints"
    return _timm(steps_per_epoch, warmup_epochs, 0.064, average=None, beside=beside)


@_recipe("Wightman, timm", _TIMM, _SCRIPT)
def timm_mixnet_xl(steps_per_epoch: float, warmup_epochs: float = 3) -> Recipe:
    """MixNet-XL of timm, on two GPUs with a batch of 128 each.

    Args:
        steps_per_epoch, warmup_epochs: As in `timm_efficientnet_b0`.
    """
    return _timm(steps_per_epoch, warmup_epochs, 0.016, 0.969)


@_recipe("Wightman, timm", _TIMM, _SCRIPT)
def timm_mobilenetv3_large_100(steps_per_epoch: float, warmup_epochs: float = 3) -> Recipe:
    """MobileNetV3-Large of timm, on two GPUs with a batch of 512 each.

    The noise that the source adds to the rate from epoch 252 to 540 is left out. Google's own
    recipe is not published in full.

    Args:
        steps_per_epoch, warmup_epochs: As in `timm_efficientnet_b0`.
    """
    beside = "600 epochs, noise of the rate from epoch 252 to 540"
    return _timm(steps_per_epoch, warmup_epochs, 0.064, 0.973, beside=beside)


# Reinforcement learning


@_recipe("Mnih et al., Human-level control, 2015", _LUA_DQN, "dqn/NeuralQLearner.lua")
def dqn() -> Recipe:
    """DQN of the Nature paper, as its Lua code has it.

    The "gradient momentum" of 0.95 is the decay of the mean that is subtracted: there is no
    momentum. The error of each of the 32 transitions is clipped to ±1, and their sum is the loss.
    """
    return Recipe(
        "graves", 2.5e-4, decay=0.95, eps=0.01, loss="sum", beside="batch 32, errors clipped to ±1"
    )


def _zoo(quarter: float = 1.0) -> Recipe:
    eps = (0.01 / 32**2) * quarter**2
    return Recipe(
        "rmsprop", 2.5e-4 * quarter, decay=0.95, eps=eps, centered=True,
        beside="batch 32, errors clipped to ±1",
    )  # fmt: skip


@_recipe("Quan & Ostrovski, DQN Zoo, 2020", _ZOO, "dqn_zoo/dqn/run_atari.py")
def dqn_zoo() -> Recipe:
    """DQN of DeepMind's DQN Zoo: `dqn` for the mean of the batch, and equal to it bit for bit."""
    return _zoo()


@_recipe("Castro et al., Dopamine, 2018", _DOPAMINE, "dopamine/tf/agents/dqn/dqn_agent.py")
def dqn_dopamine() -> Recipe:
    """DQN of Dopamine on TensorFlow: another ε than `dqn_zoo`, and ν starts at 1."""
    return Recipe(
        "tensorflow1", 2.5e-4, decay=0.95, eps=1e-5, centered=True, beside="batch 32, Huber loss"
    )


@_recipe("van Hasselt et al., Double Q-learning, 2016", _ZOO, "dqn_zoo/double_q/run_atari.py")
def double_dqn() -> Recipe:
    """Double DQN of DeepMind's DQN Zoo: the optimizer of `dqn_zoo`."""
    return _zoo()


@_recipe("Schaul et al., Prioritized replay, 2016", _ZOO, "dqn_zoo/prioritized/run_atari.py")
def prioritized_dqn() -> Recipe:
    """Prioritized DQN of DeepMind's DQN Zoo: a quarter of the rate, and η/√ε as in `dqn_zoo`."""
    return _zoo(quarter=1 / 4)


@_recipe("Young & Tian, MinAtar, 2019", _MINATAR, "examples/dqn.py")
def minatar_dqn() -> Recipe:
    """DQN of MinAtar: the numbers of `dqn`, with ε outside the root, for the mean of the batch.

    The constant GRAD_MOMENTUM of its first version was not used.
    """
    return Recipe(
        "torch", 2.5e-4, decay=0.95, eps=0.01, centered=True, beside="batch 32, Huber loss"
    )


@_recipe("Mnih et al., A3C, 2016", _BASELINES, "baselines/a2c/a2c.py")
def a2c(num_envs: float, total_steps: float = 80e6) -> Recipe:
    """A2C of OpenAI Baselines.

    Args:
        num_envs: Environments; an update is made of five steps of each.
        total_steps: Of all environments together, at which the rate is 0.
    """
    batch = 5 * num_envs
    rate = Linear(7e-4, total_steps / batch, end=(total_steps - batch + 1) / batch)
    return Recipe(
        "tensorflow1", rate, decay=0.99, eps=1e-5, clip=clip_by_norm(0.5, together=True),
        beside="5 steps, value 0.5, entropy 0.01",
    )  # fmt: skip


@_recipe("Wang et al., ACER, 2017", _BASELINES, "baselines/acer/acer.py")
def acer() -> Recipe:
    """ACER of OpenAI Baselines, with its settings for Atari.

    Elsewhere its rate falls to 0 with the steps of the environments, which the number of updates
    does not tell: replayed ones are drawn at random.
    """
    return Recipe(
        "tensorflow1", 7e-4, decay=0.99, eps=1e-5, clip=clip_by_norm(10.0, together=True),
        beside="20 steps, Q 0.5, entropy 0.01",
    )  # fmt: skip


@_recipe("Mnih et al., A3C, 2016", _SB3, "stable_baselines3/a2c/a2c.py")
def a2c_sb3() -> Recipe:
    """A2C of Stable-Baselines3, by default: ε is outside the root, where `a2c` has it inside."""
    return Recipe(
        "torch", 7e-4, decay=0.99, eps=1e-5, clip=clip_by_norm(0.5, together=True),
        beside="5 steps, value 0.5, entropy 0, GAE λ 1",
    )  # fmt: skip


@_recipe("Mnih et al., A3C, 2016", _SB3_ZOO, "hyperparams/a2c.yml")
def a2c_sb3_atari() -> Recipe:
    """A2C of Stable-Baselines3 on Atari, as RL Zoo tuned it: with TensorFlow's RMSprop."""
    return Recipe(
        "stable_baselines3", 7e-4, decay=0.99, eps=1e-5, clip=clip_by_norm(0.5, together=True),
        beside="16 environments, 5 steps, value 0.25, entropy 0.01",
    )  # fmt: skip


@_recipe("Espeholt et al., IMPALA, 2018", _IMPALA, "experiment.py")
def impala(
    learning_rate: float = 0.00048, batch_size: float = 2, total_frames: float = 1e9
) -> Recipe:
    """IMPALA, as its authors' code has it, where nothing clips the gradients.

    Args:
        learning_rate: At the start; 0.00031866995608948655 for DMLab-30.
        batch_size: Unrolls of 100 steps, of four frames each; 32 for DMLab-30.
        total_frames: Of the environments, at which the rate is 0; 1e10 for DMLab-30.
    """
    return Recipe(
        "tensorflow1", Linear(learning_rate, total_frames / (batch_size * 100 * 4)), decay=0.99,
        eps=0.1, loss="sum", beside="100 steps, baseline 0.5, entropy 0.00025",
    )  # fmt: skip


@_recipe("Küttler et al., TorchBeast, 2019", _TORCHBEAST, "torchbeast/monobeast.py")
def torchbeast(
    learning_rate: float = 0.00048, batch_size: float = 8, total_steps: float = 100_000
) -> Recipe:
    """IMPALA of TorchBeast, whose ε is outside the root: it is not `impala`'s optimizer.

    Args:
        learning_rate: At the start; 0.0004 in the README's run on Pong.
        batch_size: Unrolls of 80 steps; 4 in the README's run.
        total_steps: Of the environments, at which the rate is 0; 3e7 in the README's run.
    """
    return Recipe(
        "torch", Linear(learning_rate, total_steps / (80 * batch_size)), decay=0.99, eps=0.01,
        clip=clip_by_norm(40.0, together=True), loss="sum",
        beside="80 steps, baseline 0.5, entropy 0.0006",
    )  # fmt: skip


@_recipe("Huang et al., Cleanba, 2023", _CLEANBA, "cleanba/cleanba_impala.py")
def cleanba(total_steps: float = 50_000_000, batch_size: float = 2560) -> Recipe:
    """IMPALA of Cleanba, whose rate falls once in four updates, those of a batch.

    Args:
        total_steps: Of the environments.
        batch_size: Steps in a batch, 20 of each of 128 environments, in four parts.
    """
    return Recipe(
        "torch", Linear(0.0006, 4 * (total_steps // batch_size), unit=4), decay=0.99, eps=0.01,
        clip=clip_by_norm(40.0, together=True), loss="sum",
        beside="20 steps, value 0.5, entropy 0.01",
    )  # fmt: skip


@_recipe("Samvelyan et al., SMAC, 2019", _PYMARL, "src/config/default.yaml")
def pymarl() -> Recipe:
    """QMIX, VDN, IQL, QTRAN and COMA of PyMARL; COMA has one each for agents and critic."""
    return Recipe(
        "torch", 5e-4, decay=0.99, eps=1e-5, clip=clip_by_norm(10.0, together=True),
        beside="32 episodes, 8 for COMA",
    )  # fmt: skip


@_recipe("Hafner et al., DreamerV3, 2023", _DREAMER, "embodied/jax/opt.py")
def dreamer_v3() -> Recipe:
    """DreamerV3: LaProp, with each gradient clipped to a share of its parameter's norm.

    The first update has a rate of 0.
    """
    return Recipe(
        "laprop", WarmUp(4e-5, 1000), decay=0.999, eps=1e-20, momentum=0.9,
        clip=adaptive_clip_by_norm(0.3, 1e-3),
    )  # fmt: skip


# Language, sequences and images


@_recipe("Rafailov et al., DPO, 2023", _DPO, "config/config.yaml")
def dpo() -> Recipe:
    """Direct preference optimization of language models, and the supervised run before it."""
    return Recipe(
        "torch", WarmUp(5e-7, 150, start=5e-7 / 151), decay=0.99, eps=1e-8,
        clip=clip_by_norm(10.0, together=True), beside="batch 4, 1 epoch",
    )  # fmt: skip


@_recipe("Arjovsky et al., Wasserstein GAN, 2017", _WGAN, "main.py")
def wgan() -> Recipe:
    """Wasserstein GAN: one for the critic and one for the generator.

    Before each update of the critic its weights are clamped to ±0.01, in your loop.
    """
    return Recipe(
        "torch", 5e-5, decay=0.99, eps=1e-8,
        beside="batch 64, 5 updates of the critic for each of the generator, and 100 for the first "
        "25 and every 500th",
    )  # fmt: skip


@_recipe("Karpathy, char-rnn, 2015", _CHAR_RNN, "train.lua")
def char_rnn(steps_per_epoch: float) -> Recipe:
    """char-rnn: the rate falls from the end of the tenth epoch on.

    The loss is a sum over the 50 time steps and a mean over the batch, and ±5 bounds its gradient.

    Args:
        steps_per_epoch: Batches in an epoch.
    """
    return Recipe(
        "torch", Staircase(2e-3, 0.97, steps_per_epoch, hold=9 * steps_per_epoch), decay=0.95,
        eps=1e-8, clip=clip(5.0), loss="sum", beside="batch 50, 50 time steps, 50 epochs",
    )  # fmt: skip


@_recipe("Graves et al., Differentiable neural computer, 2016", _DNC, "train.py")
def dnc() -> Recipe:
    """The differentiable neural computer, on its repository's copying task."""
    return Recipe(
        "tensorflow1", 1e-4, decay=0.9, eps=1e-10, clip=clip_by_norm(50.0, together=True),
        beside="batch 16, 100,000 updates",
    )  # fmt: skip


@_recipe("Xu et al., Show, attend and tell, 2015", _CAPTIONS, "optimizers.py")
def show_attend_tell() -> Recipe:
    """Show, Attend and Tell: Graves's RMSprop, the default of its code.

    The repository's one script, for COCO, chooses Adam.
    """
    return Recipe("graves", 1e-4, decay=0.95, eps=1e-4, momentum=0.9, beside="batch 16")
