"""A release that is ready: one version everywhere, its workflows, and what an index shows of it."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import tomllib
from typing import Any

import jupytext
import pytest
import yaml

import optax_rmsprop

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
WORKFLOWS = {path.stem: path for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))


def workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load(WORKFLOWS[name].read_text("utf-8"))


def script(name: str, job: str, step: str) -> str:
    return next(s["run"] for s in workflow(name)["jobs"][job]["steps"] if s.get("name") == step)


@pytest.mark.parametrize(
    ["path", "pattern"],
    [
        ("CHANGELOG.md", r"^## (\S+) - "),
        ("CITATION.cff", r"^version: (\S+)$"),
        ("docs/citation.md", r"^  version = \{(.+)\},$"),
    ],
)
def test_the_version_is_the_same_everywhere(path, pattern):
    found = re.search(pattern, (ROOT / path).read_text("utf-8"), re.MULTILINE)
    assert found and found[1] == optax_rmsprop.__version__


def test_the_pythons_that_are_named_are_those_that_are_tested():
    classifiers = PROJECT["project"]["classifiers"]
    pythons = [c.rpartition(" ")[2] for c in classifiers if re.search(r":: 3\.\d+$", c)]
    assert workflow("tests")["jobs"]["newest"]["strategy"]["matrix"]["python"] == pythons
    assert PROJECT["project"]["requires-python"] == f">={pythons[0]}"


def test_the_badges_of_the_readme_are_true():
    low, *_, high = workflow("tests")["jobs"]["newest"]["strategy"]["matrix"]["python"]
    license = PROJECT["project"]["license"]
    text = (ROOT / "README.md").read_text("utf-8")
    assert re.findall(r"!\[(.*?)\]\(https://img\.shields\.io/badge/(.*?)-blue\)", text) == [
        (f"Python {low} to {high}", f"python-{low}_to_{high}"),
        (f"License: {license}", f"license-{license.replace('-', '--')}"),
    ]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_action_is_pinned_and_no_job_has_a_secret(name):
    text = WORKFLOWS[name].read_text("utf-8")
    used = re.findall(r"uses: (.*)", text)
    local = [use for use in used if use.startswith("./") and (ROOT / use).is_file()]
    pinned = [use for use in used if re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)]
    assert used and len(local) + len(pinned) == len(used)
    assert "secrets" not in text and "password" not in text


def test_only_what_was_tested_is_published_and_only_by_a_job_that_builds_nothing():
    found = workflow("release")
    jobs = found["jobs"]
    assert found[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads `on` as a boolean.
    trusted = [name for name, job in jobs.items() if "id-token" in str(job.get("permissions"))]
    assert trusted == ["publish"] and "id-token" not in str(found["permissions"])
    publish = jobs["publish"]
    assert publish["permissions"] == {"id-token": "write"} and publish["environment"]
    assert set(publish["needs"]) == jobs.keys() - {"publish"}
    assert not [step for step in publish["steps"] if "run" in step or "checkout" in step["uses"]]


@pytest.mark.parametrize(
    ["tag", "heading", "passes"],
    [
        ("v0.1.0", "## 0.1.0 - 2026-11-27", True),
        ("v0.1.0", "## 0.1.0 - unreleased", False),
        ("v0.1.0", "## 0.1.0 - 2026-11-27, nearly", False),
        ("v0.1.1", "## 0.1.1 - 2026-11-27", False),
        ("v0.1", "## 0.1 - 2026-11-27", False),
        ("v", "##  - 2026-11-27", False),
    ],
)
def test_a_tag_that_is_not_the_version_builds_nothing_to_publish(tag, heading, passes, tmp_path):
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "optax_rmsprop-0.1.0.tar.gz").touch()
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n", "utf-8")
    check = script("release", "build", "The tag is the version, and the changelog has its date")
    env = {"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}
    command = ["bash", "-e", "-c", check]
    assert (subprocess.run(command, cwd=tmp_path, env=env).returncode == 0) == passes


def test_the_workflow_runs_the_test_command_of_the_readme():
    shown = script("tests", "newest", "The README's test command").replace(
        "bash -euo pipefail -c", "echo"
    )
    found = subprocess.check_output(["bash", "-e", "-c", shown], cwd=ROOT, text=True)
    assert found.startswith("python -m venv") and found.endswith("-m pytest -n auto\n")
    assert found.strip() in (ROOT / "README.md").read_text("utf-8").splitlines()


def on_an_index(text: str) -> str:
    """What the build makes of the README."""
    hook = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


@pytest.mark.parametrize(
    ["there", "here"],
    [
        ("[a](docs/a.md) and [b](LICENSE).", "a and b."),
        ("| [a `x`](a.md#b) |", "| a `x` |"),
        ("([a](../a.md))", "(a)"),
        ("![a\nb](a/b.png)\n\nText", "Text"),
        ("![a](https://a.b/c.svg)\n", "![a](https://a.b/c.svg)\n"),
        ("[a](https://a.b/c)", "[a](https://a.b/c)"),
        ("rules[name](0.1), f(x)[0](y), a[0][1](z)", "rules[name](0.1), f(x)[0](y), a[0][1](z)"),
        ("`pip install git+<this repository>`", "`pip install optax-rmsprop`"),
    ],
)
def test_an_index_shows_the_words_of_links_that_lead_nowhere_there(there, here):
    assert on_an_index(there) == here


def test_an_index_shows_all_code_of_the_readme_and_no_dead_link():
    text = (ROOT / "README.md").read_text("utf-8")
    found = on_an_index(text)
    blocks = [re.findall(r"```.*?```", t, re.DOTALL) for t in (text, found)]
    assert blocks[0] == blocks[1] and len(blocks[0]) > 4
    prose = re.sub(r"```.*?```", "", found, flags=re.DOTALL)
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]*)", prose))
    assert "<this repository>" not in prose


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("there", [True, False])
def test_a_notebook_installs_the_package_where_it_is_missing(path, there, monkeypatch):
    code = next(cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code")
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append((command, check)))
    missing = {} if there else {"optax_rmsprop"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else name)
    exec(code, {})
    name = f"{PROJECT['project']['name']}[examples]"
    install = [sys.executable, *"-m pip install -q --find-links .".split(), name]
    assert calls == ([] if there else [(install, True)])
