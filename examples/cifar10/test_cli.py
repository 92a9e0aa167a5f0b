"""The command line: what it takes, what it refuses, and how it says so."""

import dataclasses
import inspect
import subprocess
import sys
import typing

import chex
import jax.numpy as jnp
import numpy as np
import optax
import platformdirs
import pytest

from examples.cifar10 import configs, data, devices, download, optimizer, runs
from examples.cifar10 import main as cli
from examples.cifar10.test_data import nowhere
from optax_rmsprop import dialects


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "URL", nowhere())
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")


def test_digits_stand_in_where_no_network_answers(no_network, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(runs, "train_and_evaluate", lambda *args: trained.append(args) or {})
    monkeypatch.setattr(runs, "show", lambda *_: None)
    assert cli.main(["--workdir", str(tmp_path / "run")]) == 0
    assert trained[0][1].label == "scikit-learn digits"
    assert "handwritten digits instead of CIFAR-10" in capsys.readouterr().out


SYNTHETIC = ["--dataset", "synthetic"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "cifar10"], "cannot be reached"),
        (["--dataset", "cifar10", "--offline"], "not in the cache"),
        (["--data-dir", "missing"], "is not a folder"),
        (["--data-dir", "."], "cannot read"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--epochs", str(10**30)], "--epochs must be at most"),
        (["--epochs", str(2**31 - 1), *SYNTHETIC], "must be less than 2**31 steps"),
        (["--seed", str(2**70)], "--seed must be at most"),
        (["--seed", str(2**32 - 1), "--seeds", "2"], "--seed must be at most"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--widths", "1", "1", str(10**30)], "--widths must be at most"),
        (["--devices", str(10**30)], "--devices must be at most"),
        (["--head-scale", "nan"], "--head-scale must be a finite"),
        (["--warmup", "1"], "--warmup must be"),
        (["--warmup", "0.9999", *SYNTHETIC], "--warmup 0.9999 takes all"),
        (["--learning-rate", "nan"], "--learning-rate must be a finite"),
        (["--depth", "4"], "--depth must be 2 or 3"),
        (["--image-sizes", "64"], "--image-sizes must be from 16 to 32"),
        (["--image-sizes", "24", "--network", "keras"], "needs --network airbench"),
        (["--arguments", "alpha", "0.9", *SYNTHETIC], "small has decay, eps, momentum"),
        (["--arguments", "decay", "1.5", *SYNTHETIC], "decay must be"),
        (["--resume"], "--resume needs"),
        (["--results", "table.md"], "--results is the table over"),
        (["--results", "missing/table.md", "--seeds", "2"], "its folder does not exist"),
        (["--resume", "--workdir", "missing", *SYNTHETIC], "no run to resume"),
        (["--workdir", __file__, *SYNTHETIC], "File exists"),
        (["--workdir", "/proc/run", *SYNTHETIC], "No such file or directory"),
        (["--batch-size", "1000", *SYNTHETIC], "more than all training images"),
        (["--process-id", "1"], "need --distributed"),
        (["--distributed", "auto"], "--distributed needs a --workdir"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    flags, message, no_network, tmp_path, monkeypatch, capsys
):
    if flags[:2] == ["--workdir", "/proc/run"] and sys.platform != "linux":
        pytest.skip("only Linux has a file system that nobody can write")
    monkeypatch.chdir(tmp_path)
    assert cli.main(flags) == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "message"), [({"devices": 3}, "does not divide"), ({"devices": 99}, "has 8")]
)
def test_devices_that_do_not_fit_are_refused(options, message):
    recipe = configs.Recipe(batch_size=32 if options["devices"] == 3 else 99)
    with pytest.raises(configs.UserError, match=message):
        devices.layout(configs.Options(recipe, **options))


@pytest.mark.parametrize(
    "flags", ["--epoch 1", "--optimizer lion", "--preset medium", "--arguments decay high"]
)
def test_wrong_flag_is_exit_code_2(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(flags.split())
    said = capsys.readouterr().err
    assert flags.split()[0] in said and "Traceback" not in said


def test_command_line_does_not_wait_for_jax():
    code = "import sys, examples.cifar10.main; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_presets_are_all_named():
    hints = typing.get_type_hints(configs.Options)
    assert typing.get_args(hints["preset"]) == tuple(configs.PRESETS)


@pytest.mark.parametrize("name", configs.PRESETS)
def test_preset_is_read_and_its_flags_can_be_changed(name):
    options = configs.parse(["--preset", name, "--seed", "3", "--learning-rate", "0.25"])
    changed = configs._but(configs.PRESETS[name], "optimization", learning_rate=0.25)
    assert options.recipe == dataclasses.replace(changed, seed=3)


def named_optimizers() -> tuple[str, ...]:
    return typing.get_args(typing.get_type_hints(configs.Optimization)["optimizer"])


def test_every_dialect_can_be_named():
    public = {name for name, value in vars(dialects).items() if inspect.isfunction(value)}
    made_here = {n for n in public if getattr(dialects, n).__module__ == dialects.__name__}
    assert {n for n in made_here if not n.startswith("_")} == set(named_optimizers()) - set(
        optimizer.OPTIMIZERS
    )


@pytest.mark.parametrize("name", named_optimizers())
def test_every_optimizer_goes_downhill_at_its_schedule(name):
    tx = optimizer.named(name, optax.constant_schedule(1e-3), ())
    params = jnp.ones(3)
    update, _ = tx.update(params, tx.init(params), params)
    assert (np.asarray(update) < 0).all()


def test_arguments_are_read_as_numbers_and_switches():
    options = configs.parse("--optimizer torch --arguments alpha 0.9 centered True".split())
    assert options.recipe.optimization.arguments == (("alpha", 0.9), ("centered", True))
    assert configs.parse([]).recipe == configs.PRESETS["small"]


@pytest.mark.parametrize(
    ("flags", "made"),
    [
        ("small --arguments decay 0.9", lambda rate: optimizer.rmsprop(
            rate, 0.9, 1e-8, 0.85, nesterov=True, bias_correction=True)),
        ("small", lambda rate: optimizer.rmsprop(
            rate, 0.98, 1e-8, 0.85, nesterov=True, bias_correction=True)),
        ("airbench94", lambda rate: optimizer.rmsprop(
            rate, 0.95, 1e-8, 0.85, nesterov=True, bias_correction=True)),
        ("keras-cnn", lambda rate: dialects.keras2(rate, decay=1e-6)),
        ("crowded-valley", lambda rate: dialects.tensorflow1(rate, 0.9, epsilon=1e-10)),
        ("crowded-valley-tuned", lambda rate: dialects.tensorflow1(rate, 0.9133996)),
    ],
)  # fmt: skip
def test_preset_has_its_optimizer_and_arguments_change_what_they_name(flags, made):
    config = configs.parse(f"--preset {flags}".split()).recipe.optimization
    rate = optax.constant_schedule(0.5)
    got, expected = optimizer.named(config.optimizer, rate, config.arguments), made(rate)
    params = jnp.array([1.0, -2.0])
    a, b = got.init(params), expected.init(params)
    for _ in range(2):
        (update, a), (wanted, b) = got.update(params, a, params), expected.update(params, b, params)
        chex.assert_trees_all_equal(update, wanted)


def test_arguments_reach_the_dialect():
    arguments = (("alpha", 0.9), ("momentum", 0.5))
    got = optimizer.named("torch", optax.constant_schedule(0.5), arguments)
    params = jnp.ones(3)
    expected = dialects.torch(0.5, alpha=0.9, momentum=0.5)
    chex.assert_trees_all_equal(
        got.update(params, got.init(params))[0], expected.update(params, expected.init(params))[0]
    )


def test_table_over_seeds_has_mean_spread_and_command():
    results = [
        {"seed": s, "accuracy": a, "accuracy_tta": a, "seconds": 1.0, "epoch": 2}
        for s, a in ((0, 0.5), (1, 0.6))
    ]
    arguments = ["--seeds", "2", "--data-dir", "/a/b"]
    made_up = dataclasses.replace(data.synthetic(1, 1), unverified=("test_batch.bin",))
    text = runs.summary(results, made_up, {"device": "cpu"}, arguments)
    assert text.startswith("# synthetic: 2 epochs") and f"- data: {made_up.label}" in text
    assert "--seeds 2 --data-dir b" in text and "n = 2" in text and "- device: cpu" in text
    assert "| **mean** | 55.00 |" in text and "| standard deviation | 7.07 |" in text
