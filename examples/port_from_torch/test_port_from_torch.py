import importlib.util
import os

import jax
import numpy as np
import pytest

from examples.port_from_torch import main, ours
from examples.port_from_torch.task import Settings


def continued(run, settings):
    with jax.numpy_dtype_promotion("standard"):
        graph, params, state = ours.carried(settings, run["checkpoint"])
        return ours.train(settings, settings.steps, graph, params, state)[2]


def test_the_recorded_run_goes_on_in_flax():
    settings = Settings()
    run = main.load(main.RECORDED)
    losses = continued(run, settings)
    # Rounding in 150 steps of a loss that falls from 2.3 to 0.02.
    np.testing.assert_allclose(losses, run["losses"][settings.steps :], atol=1e-5)
    assert np.mean(losses) < 0.1


@pytest.mark.slow
def test_the_wrong_number_is_seen():
    settings = Settings()
    run = main.load(main.RECORDED)
    wrong = Settings(momentum=0.91)
    losses = continued(run, wrong)
    assert np.abs(np.array(losses) - run["losses"][settings.steps :]).max() > 1e-3


def test_the_program_without_torch(tmp_path, capsys, monkeypatch):
    with jax.numpy_dtype_promotion("standard"):
        assert main.main(main.Options(workdir=tmp_path, recorded=True)) == 0
    assert "largest difference of a loss" in capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert main.main(main.Options(Settings(lr=0.1), tmp_path, recorded=True)) == 2
    assert "default settings" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main.main(main.Options(workdir=tmp_path)) == 2
    assert "torch is not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_program_with_torch(tmp_path, capsys):
    if importlib.util.find_spec("torch") is None:
        if os.environ.get("OPTAX_RMSPROP_LIVE") == "1":
            pytest.fail("torch is not installed")
        pytest.skip("torch is not installed")
    settings = Settings(steps=30)
    with jax.numpy_dtype_promotion("standard"):
        assert main.main(main.Options(settings, tmp_path)) == 0
    run = main.load(tmp_path / "torch_run.npz")
    assert len(run["losses"]) == 60
    np.testing.assert_allclose(continued(run, settings), run["losses"][30:], atol=1e-5)
    assert run["checkpoint"]["optimizer"]["param_groups"][0]["param_names"][0] == "conv1.weight"
