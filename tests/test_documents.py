"""Documents cannot lag: the README's code, the notebooks and their pairs are executed."""

import pathlib
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import jupytext
import nbclient
import nbformat
import numpy as np
import optax
import pytest
from flax import nnx

import optax_rmsprop
from tools import cheatsheet, site
from tools.tables import SCRIPT, page

pytestmark = pytest.mark.api

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def blocks(path: pathlib.Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def executed(path: pathlib.Path) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    with jax.numpy_dtype_promotion("standard"):
        for code in blocks(path, "python"):
            exec(compile(code, path.name, "exec"), namespace)
    return namespace


def test_the_code_of_the_readme_runs():
    namespace = executed(ROOT / "README.md")
    # The first steps, rate / √(1 − decay) against the gradient, and their derivatives.
    sizes = np.array([1e-3, 1e-2]) / np.sqrt([0.1, 0.01])
    np.testing.assert_allclose(namespace["steps"], -sizes, 1e-5)
    by_both = [-np.sqrt(10), -1e-2 / 2 * 10**1.5]
    np.testing.assert_allclose(namespace["hypergradients"], by_both, 1e-5)
    carried = optax.tree.get(namespace["optimizer"].opt_state, "nu")
    expected = [jnp.full(shape, 0.25) for shape in ((10,), (64, 10))]  # of the bias, the kernel
    chex.assert_trees_all_equal(jax.tree.leaves(carried), expected)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(path):
    assert bool(executed(path)) == bool(blocks(path, "python"))


def test_what_was_converted_fills_a_model_of_flax(tmp_path):
    page = executed(ROOT / "docs" / "commands.md")
    model, optimizer, like = page["model"], page["optimizer"], page["like"]
    loaded = jax.tree.map(lambda x: x + 1, like)
    np.savez(tmp_path / "run.npz", **{
        jax.tree_util.keystr(at, simple=True, separator="/"): x
        for at, x in jax.tree_util.tree_leaves_with_path(loaded)
    })  # fmt: skip
    page["fill"](model, optimizer, page["from_npz"](tmp_path / "run.npz"))
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(model)), loaded["params"])
    chex.assert_trees_all_equal(
        jax.tree.leaves(optimizer.opt_state), jax.tree.leaves(loaded["opt_state"])
    )
    optimizer.update(model, nnx.state(model))


def test_the_truth_table_is_up_to_date_and_has_no_empty_cell():
    assert page() == (ROOT / "docs" / "dialects.md").read_text("utf-8"), "python -m tools.tables"
    assert site.script() == SCRIPT.read_text("utf-8"), "python -m tools.tables"
    for line in page().splitlines():
        assert not (line.startswith("|") and re.search(r"\|\s*\|", line)), line


PICTURES = cheatsheet.PICTURES


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_the_cheat_sheet_shows_what_the_package_makes(name):
    drawn, made = cheatsheet.drawn(cheatsheet.FOLDER / f"{name}.svg"), PICTURES[name].curves()
    assert list(drawn) == list(made), "python -m tools.cheatsheet"
    for curve in made:
        np.testing.assert_allclose(drawn[curve], made[curve], rtol=1e-5, err_msg=curve)


def test_a_picture_of_the_cheat_sheet_has_its_numbers_in_itself(tmp_path):
    cheatsheet.draw(tmp_path / "rate.svg", PICTURES["rate"])
    assert cheatsheet.drawn(tmp_path / "rate.svg") == PICTURES["rate"].curves()


def curves(name):
    return (
        np.array(curve) for curve in cheatsheet.drawn(cheatsheet.FOLDER / f"{name}.svg").values()
    )


def test_the_pictures_of_the_cheat_sheet_are_the_formulas():
    """Each curve in closed form: the average of a constant is 1 − ρᵗ of it, a buffer's a sum."""
    close = dict(rtol=1e-4)
    size, under, beside = curves("eps")
    np.testing.assert_allclose(under, size / np.sqrt(size**2 + 1e-3), **close)
    np.testing.assert_allclose(beside, size / (size + 1e-3), **close)
    t, zero, one = curves("start")
    np.testing.assert_allclose(zero, 1 / np.sqrt(1 - 0.9**t), **close)
    np.testing.assert_allclose(one, 0.1 / np.sqrt(0.9**t + 0.01 * (1 - 0.9**t)), **close)
    t, inside, after = curves("rate")
    full, late = (1 - 0.9**t) / 0.1, np.maximum(t - 40, 0)
    np.testing.assert_allclose(after, np.where(t <= 40, 1, 0.1) * full, **close)
    passed = 0.9**late * (1 - 0.9**40) / 0.1 + 0.1 * (1 - 0.9**late) / 0.1
    np.testing.assert_allclose(inside, np.where(t <= 40, full, passed), **close)
    spread, rms, stddev = curves("centering")
    np.testing.assert_allclose(rms, 1 / np.sqrt(1 + spread**2), rtol=0.02)
    np.testing.assert_allclose(stddev, 1 / spread, rtol=0.03)
    t, small, decoupled, large = curves("decay")
    np.testing.assert_allclose(decoupled, (1 - 0.01 * 0.1) ** t, rtol=0.03)
    np.testing.assert_allclose(small, (1 - 0.01 * 0.1 / 0.3) ** t, rtol=0.06)
    np.testing.assert_allclose(large, (1 - 0.01 * 0.1 / 3) ** t, rtol=0.03)


def test_the_cheat_sheet_has_every_picture():
    text = (ROOT / "docs" / "cheatsheet.md").read_text("utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(pictures/(\w+)\.svg\)", text)
    assert shown == list(PICTURES)
    assert {path.stem for path in cheatsheet.FOLDER.iterdir()} == set(PICTURES)


def last(tx, grads):
    """The last update of a run, and the last state."""
    state, updates = jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], tx.init(grads[0]), grads)
    return updates[-1], state


def centred(make):
    noise = np.random.default_rng(0).normal(size=(400, 4096))
    update, _ = last(make(1e-3, centered=True), jnp.asarray(100 + 1e-3 * noise, jnp.float32))
    return "finite" if jnp.isfinite(update).all() else "nan"


def average(make):
    _, state = last(make(1e-3, decay=0.999), jnp.ones((10_000, 1), jnp.bfloat16))
    return f"{float(optax.tree.get(state, 'nu')[0]):.3g}"


# What the README's table says of both, computed.
REASONS = {
    "the update of a zero gradient in float16": lambda make: (
        f"{float(last(make(1e-3), jnp.zeros((1, 1), jnp.float16))[0][0]) + 0:g}"
    ),
    "4,096 numbers after 400 centred steps with gradients of 100 ± 0.001": centred,
    "a step 2,000 steps after one infinite gradient": lambda make: (
        f"{float(last(make(1e-3), jnp.ones((2001, 1)).at[0].set(jnp.inf))[0][0]) + 0:.3g}"
    ),
    "the average of a squared gradient of 1 in bfloat16, decay 0.999": average,
}


def test_the_reasons_in_the_readme_are_what_comes_out():
    text = (ROOT / "README.md").read_text("utf-8").partition("## Why not `optax.rmsprop`?")[2]
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", text.partition("\n## ")[0], re.MULTILINE)
    with jax.numpy_dtype_promotion("standard"):
        found = [
            (reason, outcome(optax.rmsprop), outcome(optax_rmsprop.rmsprop))
            for reason, outcome in REASONS.items()
        ]
    assert rows[1:] == found


def test_what_the_readme_says_of_other_frameworks_can_be_called():
    text = (ROOT / "README.md").read_text("utf-8").partition("| you have |")[2]
    calls = re.findall(r"\| `(dialects\..*?)` \|$", text.partition("\n\n")[0], re.MULTILINE)
    assert len(calls) == 5
    for call in calls:
        assert eval(call, {"dialects": optax_rmsprop.dialects}).init(jnp.ones(2))


def test_the_readme_has_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for mark, ends in (("run", "-m examples.cifar10.main"), ("test", "-m pytest -n auto")):
        command = re.search(rf"<!-- {mark} -->\n```bash\n(python .*)\n```", text)
        assert command and command.group(1).endswith(ends)


def test_links_of_the_documents_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("examples/*/*.md"), *PAGES]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            there = target.startswith("https://") or (path.parent / target).exists()
            assert there, (path.name, target)


def test_the_page_of_evidence_has_every_result():
    text = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    results = [path for path in ROOT.glob("*/**/results/*.md") if ".venv" not in path.parts]
    assert results and not [p for p in results if f"../{p.relative_to(ROOT)}" not in text]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_paired(path):
    text, notebook = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), 4)
    pair = [(cell.cell_type, cell.source) for cell in text.cells]
    assert pair == [(cell.cell_type, cell.source) for cell in notebook.cells], "jupytext --sync"
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
