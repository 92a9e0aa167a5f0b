"""What surrounds the package: which folder may import which, and files that are written whole."""

import ast
import pathlib
import runpy
from types import SimpleNamespace

import pytest

from tools import environment

ROOT = pathlib.Path(__file__).parents[1]
# A folder imports from these and from itself. An example can be copied with the package alone; the
# benchmarks and the experiments train it; the tests look at what stands beside the package.
MAY = {
    "optax_rmsprop": set[str](),
    "examples": {"optax_rmsprop"},
    "notebooks": {"optax_rmsprop", "examples"},
    "tools": {"optax_rmsprop"},
    "benchmarks": {"optax_rmsprop", "examples", "tools"},
    "experiments": {"optax_rmsprop", "examples", "tools"},
    "tests": {"optax_rmsprop", "tools", "benchmarks"},
}


def imported(source: str) -> set[str]:
    """The first parts of all that is imported, anywhere in a module."""
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).partition(".")[0])
    return found


def files(folder: str) -> list[pathlib.Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def forbidden(folder: str, source: str) -> set[str]:
    return (imported(source) & {*MAY, "docs"}) - MAY[folder] - {folder}


@pytest.mark.parametrize("folder", MAY)
def test_a_folder_imports_only_what_it_may(folder):
    found = {path: forbidden(folder, path.read_text("utf-8")) for path in files(folder)}
    assert found and not {path: names for path, names in found.items() if names}


def test_the_docs_are_prose_and_one_file_of_settings():
    assert files("docs") == [ROOT / "docs" / "conf.py"]


@pytest.mark.parametrize(
    ["folder", "source"],
    [
        ("tools", "from tests.test_goldens import NAMES"),
        ("tools", "def f():\n    import tests.cases"),
        ("examples", "from tools import environment"),
        ("benchmarks", "from experiments import common"),
        ("tests", "from docs.truth import ROWS"),
    ],
)
def test_the_search_for_imports_can_fail(folder, source):
    assert len(forbidden(folder, source)) == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "page.md"
    environment.write_text(path, "ν\n")
    with pytest.raises(ZeroDivisionError), environment.replacing(path) as new:
        new.write_text("half", encoding="utf-8")
        raise ZeroDivisionError
    assert path.read_text("utf-8") == "ν\n" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("cases", "kept"), [(1, 1), (2, 1), (3, 1), (4, 2), (60, 20)])
def test_a_share_has_one_case_in_three_of_each_test_and_always_the_same(cases, kept):
    share = runpy.run_path(str(ROOT / "conftest.py"))["_share"]
    one, other = ([SimpleNamespace(nodeid=f"{x}[{i}]") for i in range(cases)] for x in "ab")
    found = list(share([*one, *other], 3))
    assert found == list(share([*one, *other], 3))
    assert sum(item in one for item in found) == sum(item in other for item in found) == kept
    assert sorted(share(one, 1), key=one.index) == one
