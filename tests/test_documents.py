"""Documents cannot lag: the README's code, the notebooks and their pairs are executed."""

import pathlib
import re
from typing import Any

import chex
import jax
import jupytext
import nbclient
import nbformat
import optax
import pytest

from tools import site
from tools.tables import SCRIPT, page, with_excerpt

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
    assert namespace["losses"].shape == (3,)
    carried = optax.tree.get(namespace["state"], "nu")
    chex.assert_trees_all_equal_shapes(carried, namespace["flax_params"])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs(path):
    assert bool(executed(path)) == bool(blocks(path, "python"))


def test_the_truth_table_is_up_to_date_and_has_no_empty_cell():
    assert page() == (ROOT / "docs" / "dialects.md").read_text("utf-8"), "python -m tools.tables"
    assert site.script() == SCRIPT.read_text("utf-8"), "python -m tools.tables"
    readme = (ROOT / "README.md").read_text("utf-8")
    assert with_excerpt(readme) == readme, "python -m tools.tables"
    for text in (page(), readme):
        for line in text.splitlines():
            assert not (line.startswith("|") and re.search(r"\|\s*\|", line)), line


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


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_paired(path):
    text, notebook = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), 4)
    pair = [(cell.cell_type, cell.source) for cell in text.cells]
    assert pair == [(cell.cell_type, cell.source) for cell in notebook.cells], "jupytext --sync"
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
