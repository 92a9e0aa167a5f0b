"""The benchmark of an update: a trial writes every row, and its ratios are of what it measured."""

import json
import os
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

import pytest

from benchmarks import update
from benchmarks.contestants import Contestant

ROOT = Path(update.__file__).parents[1]
TIMES = ("its step, ms", "our step, ms")
TORCH, KERAS = "dialects.torch, weight decay, momentum", "dialects.keras, momentum"


def sleeper(name, seconds):
    return Contestant(name, lambda k: time.sleep(k * seconds))


def test_the_comparison_is_with_the_fastest_of_the_others():
    others = [sleeper("slow", 16e-3), sleeper("fast", 4e-3)]
    slower = update.compared(sleeper("ours", 8e-3), others, 3, True)
    faster = update.compared(sleeper("ours", 1e-3), others, 3, True)
    assert slower["beside"].startswith("fast; slow: ") and slower["ratio"] > 1 > faster["ratio"]


@pytest.mark.slow
def test_a_trial_writes_every_row(tmp_path):
    # At this level the compiler is fast, and says the same of bytes.
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    command = [sys.executable, "-m", "benchmarks.update", "--quick", "--repeats", "5"]
    subprocess.run(
        [*command, "--out", str(tmp_path)],
        check=True, timeout=300, cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags},
    )  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["update.json", "update.md"]
    page = (tmp_path / "update.md").read_text(encoding="utf-8")
    tables = json.loads((tmp_path / "update.json").read_text(encoding="utf-8"))["tables"]
    assert (
        "    python -m benchmarks.update --repeats 5 --quick\n" in page
        and "- unfinished" not in page
    )
    steps(tables["step"], page)
    small = tables["small leaves"]
    assert [(row["leaves"], row["setting"]) for row in small] == [
        (n, setting) for n in (4, 10) for setting in ("plain", "momentum")
    ]
    others = tables["other models"]
    assert len(others) == 3 * 2 * (2 + len(update.STORED))
    measured(tables["step"] + small + others, page)


def steps(rows, page):
    expected = [(setting, "Optax") for setting in [*update.SETTINGS, *update.STORED]]
    for setting, package, name in ((TORCH, "torch", "PyTorch"), (KERAS, "keras", "Keras")):
        expected.append((setting, "Optax's"))
        if util.find_spec(package):
            expected.append((setting, name))
        else:
            assert f"beside `{package}` is left out" in page
    found = [(row["setting"], row["beside"].replace(",", " ").split()[0]) for row in rows]
    assert found == expected


def measured(rows, page):
    for row in rows:
        assert all(0 < row[x][0] <= row[x][1] <= row[x][2] < 1e5 for x in TIMES) and row["n"] == 5
        theirs, ours = (row[x][1] for x in TIMES)
        assert row["ratio"] == ours / theirs and f"| {row['ratio']:.4g} |" in page
        assert 0 < row["fraction of a copy's bandwidth"] < 10
        # Params, gradient and second moment read, params and second moment written: in bfloat16, or
        # in 16 bits, it is half of float32's.
        assert row["accessed, ours"] > 8 and row["temporary, ours"] >= 0
        if "PyTorch" not in row["beside"]:
            assert row["accessed, its"] >= 10 and row["temporary, its"] >= 0
    assert len({row["ratio"] for row in rows}) == len(rows)  # Each is of a measurement of its own.


@pytest.mark.slow
def test_a_trial_of_the_overhead_writes_every_row(tmp_path):
    command = [sys.executable, "-m", "benchmarks.overhead", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300, cwd=ROOT)
    page = (tmp_path / "overhead.md").read_text(encoding="utf-8")
    compiled, called = (
        [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")]
        for part in page.split("The microseconds of a step")
    )
    by, head = ("Optax", "ours", "ours, uint8"), compiled.pop(0)
    kinds = [[kind, name] for kind in ("init", "step") for name in by]
    assert [row[:3] for row in compiled] == [
        [str(n), *kind] for n in (5, 2, 3, 4) for kind in kinds
    ]
    for row in compiled[:-6]:
        found = dict(zip(head, row, strict=False))
        parts = [float(found[f"{stage}, s"]) for stage in ("trace", "lower", "compile")]
        assert min(parts) > 0 and float(found["sum, s"]) == pytest.approx(sum(parts), rel=1e-3)
        assert ("ratio" in found) == (found["by"] != "Optax") and float(found["text, KiB"]) > 1
        # A state of float32 has 8 bytes; a step has parameters and gradients too, of which `init`
        # may need none.
        least, most = (16, 16) if found["function"] == "step" else (8, 12)
        peak = float(found["peak, B/parameter"]) - float(found["temporary, B/parameter"])
        assert least - 3 * ("uint8" in found["by"]) <= peak <= most + 0.5
    kinds = [[kind, name] for kind in ("jitted", "eager") for name in by]
    assert [row[:3] for row in called[1:]] == [[n, *kind] for n in "23" for kind in kinds]
    medians = [float(row[4].split()[0].replace(",", "")) for row in called[1:]]
    assert min(medians) > 0
    for first in range(0, len(medians), 3):
        for i in (1, 2):
            ratio = medians[first + i] / medians[first]
            assert float(called[1 + first + i][5]) == pytest.approx(ratio, rel=1e-2)
