"""The study of preference optimization: its page says what was done."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from examples.dpo import dpo as example
from examples.dpo import report
from experiments import dpo


def test_the_page_has_a_row_and_a_text_for_each_rule(tmp_path, monkeypatch):
    curves = np.array([[[0.5, 0.0, 0.6], [0.75, 0.1, 0.8]]])
    result, params = report.Result(200, 102, curves), {"w": jnp.zeros(100)}
    model = example.Model(None, params, "ab", jnp.zeros(40, int), jnp.zeros(40, int))
    asked = []
    monkeypatch.setattr(example, "start", lambda options, said: model)
    monkeypatch.setattr(
        example, "compare",
        lambda model, rules, *rest: (
            asked.append((*rules, *rest[:2])),
            ({name: result for name in rules}, {name: params for name in rules}),
        )[1],
    )  # fmt: skip
    monkeypatch.setattr(example, "example", lambda model, params: "abba")
    dpo.study(tmp_path, tmp_path, seeds=2, updates=9)
    assert asked == [("adamw", "rmsprop", "uint8", "nearest", 2, 9)]
    page = (tmp_path / "dpo.md").read_text("utf-8")
    for name in asked[0][:-2]:
        assert f"| {report.NAMES[name]} | 2.00 | 1.02 | 3.02 | 75.0 | 0.1000 | 80.0 |" in page
    assert page.count("```text\nabba\n```") == 5 and "100 parameters" in page
    # A part is never cut: what was asked for is rounded up, and said so.
    assert f"setting: {example.PART} updates of {example.BATCH} pairs" in page
    assert (tmp_path / "dpo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("flag", ["--seeds", "--updates"])
def test_a_wrong_option_is_refused(flag, capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        dpo.main(["--results", str(tmp_path), flag, "0"])
    assert re.search(f"{flag} must be at least 1, got 0", capsys.readouterr().err)
    assert not [*tmp_path.iterdir()]
