"""The documentation site: built strictly, and nothing in it is fetched from elsewhere."""

import html.parser
import pathlib
import re
import subprocess
import sys
import urllib.parse
import zlib

import pytest

import optax_rmsprop
from optax_rmsprop import denominators, dialects, interop, sharding, storage

pytest.importorskip("sphinx_book_theme", reason="the site needs the dependency group `docs`")
pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]


class Page(html.parser.HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "a":
            self.links.append(attrs.get("href") or "")
        else:
            self.loads += [attrs[name] for name in ("src", "href", "srcset") if name in attrs]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Every warning of the build is an error, and so is a reference that leads nowhere."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-c", "docs", ".", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def is_remote(target):
    return bool(re.match(r"(https?:)?//", target))


def test_nothing_is_fetched_from_elsewhere(site, pages):
    assert len(pages) > 25
    assert not [target for page in pages.values() for target in page.loads if is_remote(target)]
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text("utf-8")), path


def test_links_lead_to_a_page_and_a_place_in_it(pages):
    for path, page in pages.items():
        for link in page.links:
            target, _, place = link.partition("#")
            if is_remote(target) or target.startswith("mailto:"):
                continue
            there = (path.parent / urllib.parse.unquote(target)).resolve() if target else path
            assert there.exists(), (path.name, link)
            if place and there in pages:
                assert urllib.parse.unquote(place) in pages[there].ids, (path.name, link)


PUBLIC = [optax_rmsprop, dialects, denominators, interop, sharding, storage]
# Of use to other modules of the package alone.
INTERNAL = {f"optax_rmsprop.storage.{n}" for n in ("encoded_like", "second_moments", "shown")}


def public_names(module):
    """The functions and classes that a module is for: its own, and those that it re-exports."""
    source = pathlib.Path(module.__file__).read_text("utf-8")
    handed_on = re.findall(r"^from \.\S* import \w+ as (\w+)$", source, re.MULTILINE)
    own = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    ]
    names = {name for name in {*handed_on, *own} if callable(getattr(module, name))}
    return {f"{module.__name__}.{name}" for name in names}


def test_the_reference_has_every_public_name(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    found = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    needed = set.union(*map(public_names, PUBLIC))
    assert len(needed) > 50 and needed - found == INTERNAL
