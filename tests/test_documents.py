"""Documents cannot lag: the README's code, the notebooks and their pairs are executed."""

import pathlib
import re

import jax
import jupytext
import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def blocks(path: pathlib.Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_code_of_the_readme_runs():
    found = blocks(ROOT / "README.md", "python")
    assert len(found) >= 5
    namespace = {}
    with jax.numpy_dtype_promotion("standard"):
        for code in found:
            exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["losses"].shape == (3,)


def test_the_readme_has_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for mark, ends in (("run", "-m examples.cifar10.main"), ("test", "-m pytest -n auto")):
        command = re.search(rf"<!-- {mark} -->\n```bash\n(python .*)\n```", text)
        assert command and command.group(1).endswith(ends)


def test_links_of_the_documents_lead_somewhere():
    for path in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (ROOT / target).exists(), (path.name, target)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_paired(path):
    text, notebook = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), 4)
    pair = [(cell.cell_type, cell.source) for cell in text.cells]
    assert pair == [(cell.cell_type, cell.source) for cell in notebook.cells], "jupytext --sync"
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
