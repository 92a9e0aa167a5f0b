"""The documentation site: `python -m sphinx -W -n -c docs . build/site`.

The repository is the source folder, so that a link leads to the same file here and on the site.
"""

import os
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

project = "optax_rmsprop"
author = copyright = "The optax_rmsprop authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

root_doc = "docs/index"
include_patterns = ["docs/**.md", "*.md", "*/results/**.md", "examples/**.md", "index.html"]
include_patterns += ["notebooks/*.ipynb"]
exclude_patterns = ["README.md", ".*", "**/.*", "build", "dist", "runs", "tests", "optax_rmsprop"]
suppress_warnings = ["myst.header"]

myst_heading_anchors = 3
nb_execution_mode = "off"  # Shown as committed: the tests execute them.
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # The signatures are in the source; the docstrings have the ranges.
autodoc_preserve_defaults = True

html_theme = "sphinx_book_theme"
html_title = "optax_rmsprop"
html_static_path = ["_static"]
html_extra_path = ["_root"]
html_css_files = ["site.css"]
html_copy_source = False
html_theme_options = {
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # One field to search is enough: that of the sidebar.
}
if repository := os.environ.get("GITHUB_REPOSITORY"):  # GitHub's workflows set it: owner/name.
    html_theme_options |= {
        "repository_url": f"https://github.com/{repository}",
        "repository_branch": "main",
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }
copybutton_exclude = ".linenos, .gp, .go"


def readable(app, what, name, obj, options, lines):
    """Show formulas and code of a docstring as they stand: it is plain text."""
    parts = re.split(r"(\n\n(?: {4}(?!>>>).*\n|\n(?= {4}))+)", "\n".join([*lines, ""]))
    parts[::2] = [re.sub(r"`([^`]+)`|\|", _code, text) for text in parts[::2]]
    parts[1::2] = [f"\n\n::{formula}" for formula in parts[1::2]]
    lines[:] = "".join(parts).split("\n")


def _code(found):
    return f"``{found[1]}``" if found[1] else r"\|"


def setup(app):
    """Come before napoleon, which rewrites the sections."""
    app.connect("autodoc-process-docstring", readable, priority=100)
