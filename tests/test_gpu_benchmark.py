"""The GPU run: tried without a GPU, and its files hold what it promises."""

import json
import math
import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import models, part

ROOT = pathlib.Path(gpu.__file__).parents[2]
# A machine with a GPU may lack what only the command line, the cache and the notebooks need.
MISSING = ["tyro", "platformdirs", "jupytext", "nbclient", "ipykernel"]
BLOCKER = f"""import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING}:
            raise ImportError(name + " is missing here")
sys.meta_path.insert(0, Blocker())
"""
SETTINGS = ["momentum", "plain", "centred", "dialects.torch"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # as the command does


def test_the_models_are_what_they_are_called():
    sizes = {
        name: (len(shapes), sum(map(math.prod, shapes.values())))
        for name, shapes in models.models(small=False).items()
    }
    assert sizes["ResNet-50"] == (161, 25_557_032)
    assert sizes["transformer"] == (148, 124_439_808)
    assert sizes["one leaf"] == (1, 19_532 * 20_480)


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n"), err.count(".\n")) == ("", 1, 1) and "no GPU" in err
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_leaves_the_others(monkeypatch, tmp_path, capfd):
    codes = {
        "correct": "import time; print('rows', flush=True); time.sleep(60)",
        "update": "raise SystemExit(3)",
        "cifar": f"open({str(tmp_path / 'gpu-cifar.md')!r}, 'w').close()",
    }
    monkeypatch.setattr(gpu, "command", lambda name, _: [sys.executable, "-c", codes[name]])
    monkeypatch.setitem(part.SECONDS, "correct", 1)
    began = time.monotonic()
    assert gpu.main(["--small", "--out", str(tmp_path)]) == 1
    assert time.monotonic() - began < 30
    assert (tmp_path / "gpu-cifar.md").exists()
    assert capfd.readouterr().err == (
        "benchmarks.gpu: the part correct took more than its 1 s, "
        "the part update ended with exit code 3.\n"
    )


def test_what_a_part_starts_ends_with_it(tmp_path):
    child = f"import time; time.sleep(2); open({str(tmp_path / 'late')!r}, 'w')"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert gpu.run([sys.executable, "-c", code], 1) == "took more than its 1 s"
    time.sleep(1.5)
    assert not (tmp_path / "late").exists()


def test_files_are_whole_after_every_row(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["gpu", "--small", "--out", str(tmp_path)])
    files = part.Part("update", "Title", {"rows": "Caption.", "none": "Nothing."})
    files.add("rows", {"x": "a|b", "y": [0.123456, 2.0, 12345.6], "z": None})
    files.add("rows", {"x": 28, "error": "no time left"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpu-update.json", "gpu-update.md"]
    found, lines = read(tmp_path, "update")
    assert [row["x"] for row in found["tables"]["rows"]] == ["a|b", 28] and not found["finished"]
    assert lines[-6:] == [
        "Caption.", "", "| x | y | z | error |", "|---|---|---|---|",
        r"| a\|b | 2 (0.1235 to 12,346) |  |  |", "| 28 |  |  | no time left |",
    ]  # fmt: skip
    assert any(line.startswith("- unfinished") for line in lines)
    with pytest.raises(SystemExit) as end:
        files.finish()
    assert end.value.code == 0 and read(tmp_path, "update")[0]["finished"]


def read(folder, name):
    found = json.loads((folder / f"gpu-{name}.json").read_text())
    return found, (folder / f"gpu-{name}.md").read_text().splitlines()


@pytest.mark.slow
def test_all_of_it_on_a_cpu(tmp_path):
    blocker, out = tmp_path / "blocker", tmp_path / "out"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(BLOCKER)
    environment = os.environ | {"PYTHONPATH": str(blocker)}
    for name in MISSING:
        code = [sys.executable, "-c", f"import {name}"]
        assert subprocess.run(code, env=environment, capture_output=True).returncode, name
    # At this level the compiler is fast, and says the same of bytes.
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--out", str(out)]
    subprocess.run(
        command, check=True, timeout=600, cwd=ROOT, env=environment | {"XLA_FLAGS": flags}
    )
    names = [f"gpu-{name}.{kind}" for name in part.SECONDS for kind in ("json", "md")]
    assert sorted(p.name for p in out.iterdir()) == sorted(names)
    for name in part.SECONDS:
        found, lines = read(out, name)
        assert found["finished"] and not found["failed"]
        text = "\n".join(lines[:12])
        assert "python -m benchmarks.gpu --small --out out" in text
        assert f"- device: {jax.devices()[0].device_kind}" in text
        assert f"jax {jax.__version__}" in text and "- date: 20" in text
    correct(read(out, "correct")[0]["tables"])
    update(read(out, "update")[0]["tables"])
    cifar(read(out, "cifar")[0]["tables"])


def correct(tables):
    assert len(tables["codes"]) == 16 and len(tables["trajectories"]) == 16
    assert all(row["different"] == 0 and row["elements"] > 10_000 for row in tables["codes"])
    assert all(row["ulp"] <= row["bound"] < 200 for row in tables["trajectories"])
    assert tables["failures"] == []
    assert sum(row["passed"] for row in tables["tests"]) > 0


def update(tables):
    ours, theirs = "optax_rmsprop", "optax"
    kinds = [(name, by) for name in SETTINGS for by in (theirs, ours)]
    kinds += [(name, ours) for name in ("uint16", "uint8", "uint16, int16", "uint8, int8")]
    xla = [row for row in tables["update"] if "PyTorch" not in row["by"]]
    rows = {tuple(row[x] for x in ("model", "dtype", "setting", "by")): row for row in xla}
    shapes = models.models(small=True)
    assert set(rows) == {(x, y, *kind) for x in shapes for y in models.DTYPES for kind in kinds}
    for row in xla:
        low, middle, high = row["step, µs"]
        assert 0 < low <= middle <= high < 1e6 and row["n"] == 3
        assert 0 < row["fraction"] < 2 and (row["by"] == theirs or row["× Optax"] > 0)
        # All is accessed at least once, and temporary memory is a part of the plan.
        assert row["accessed"] > row["must move"] - 1 and row["temporary"] < row["peak, planned"]
    # float32: gradients 4, params 2 * 4, nu 2 * 4, and momentum's buffer or centred's mean 2 * 4.
    moved = {x: rows["one leaf", "float32", x, ours]["must move"] for x, _ in kinds}
    assert moved == {
        "momentum": 28, "plain": 20, "centred": 28, "dialects.torch": 20,
        "uint16": 12 + 2 * 2, "uint8": 12 + 2 * (1 + 1 / 128),
        "uint16, int16": 12 + 2 * 4, "uint8, int8": 12 + 2 * (2 + 2 / 128),
    }  # fmt: skip
    # bfloat16: this package keeps its state in float32, Optax in bfloat16.
    half = [rows["one leaf", "bfloat16", "momentum", by]["must move"] for by in (ours, theirs)]
    assert half == [6 + 16, 6 + 8]
    dispatch = [row for row in tables["dispatch"] if "PyTorch" not in row["by"]]
    assert len(dispatch) == 2 * len(kinds)  # of the models with many leaves
    assert all(row["waited for, µs"][0] > 0 and row["inside, µs"][0] > 0 for row in dispatch)
    copies = [row for row in tables["copy"] if row["by"] != "PyTorch"]
    assert len(copies) == 2 * len(shapes) * 2 and all(row["GB/s"][0] > 0 for row in copies)
    torch = [row for row in tables["update"] if "PyTorch" in row["by"]]
    assert torch and all("error" in row or row["step, µs"][0] > 0 for row in torch)


def cifar(tables):
    speeds = {row["optimizer"]: row["images/s"] for row in tables["throughput"]}
    assert list(speeds) == ["optax_rmsprop", "optax.rmsprop", "none"]
    assert all(0 < low <= middle <= high for low, middle, high in speeds.values())
    assert [row["seed"] for row in tables["seeds"]] == [0, 1]
    assert tables["seeds"][0]["final loss"] != tables["seeds"][1]["final loss"]
    for row in tables["seeds"]:
        assert 0 < row["test accuracy, %"] < 100 and 0 < row["with TTA, %"] < 100
        assert row["training, s"] > 0
    (whole,) = tables["accuracy"]
    assert whole["n"] == 2 and whole["data"] == "synthetic"
    mean = sum(row["test accuracy, %"] for row in tables["seeds"]) / 2
    assert whole["test accuracy, %"].startswith(f"{mean:.2f} ± ")
