"""The plan for a large mesh is a command, and its table stays what is promised."""

import subprocess
import sys

import numpy as np
import pytest


@pytest.mark.slow
def test_the_update_of_a_large_model_is_planned_on_one_cpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.plan", "--devices", "64"]
    subprocess.run([*command, "--results", str(tmp_path)], check=True, timeout=300)
    text = (tmp_path / "plan.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert {row[3] for row in rows} == {"none"}
    # Bytes a parameter; the norms, split over one axis only, add less than a thousandth.
    np.testing.assert_allclose([float(row[2]) for row in rows], [4, 2, 1 + 1 / 128, 8], rtol=1e-3)
