"""The documentation site: built strictly, complete without a network, and right in a browser."""

import html.parser
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_rmsprop
from optax_rmsprop import denominators, dialects, interop, recipes, sharding, storage
from tests.test_goldens import allowed
from tools import recorded, screenshots
from tools import site as truth
from tools.truth import NAMES, ROWS

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


def build(out, **variables):
    """Every warning of the build is an error, and so is a reference that leads nowhere."""
    environment = {k: v for k, v in os.environ.items() if k != "GITHUB_REPOSITORY"} | variables
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-c", "docs", ".", str(out)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_a_workflow_gives_each_notebook_a_link_to_colab(tmp_path, pages):
    colab = "https://colab.research.google.com/"
    assert not [link for page in pages.values() for link in page.links if link.startswith(colab)]
    built = build(tmp_path, GITHUB_REPOSITORY="someone/optax-rmsprop")
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        page = Page(built / "notebooks" / f"{notebook.stem}.html")
        link = f"{colab}github/someone/optax-rmsprop/blob/main/notebooks/{notebook.name}"
        assert [target for target in page.links if target.startswith(colab)] == [link]
    assert not [target for target in page.loads if is_remote(target)]


def is_remote(target):
    return bool(re.match(r"(https?:)?//", target))


def test_nothing_is_fetched_from_elsewhere(site, pages):
    assert len(pages) > 25
    assert not [target for page in pages.values() for target in page.loads if is_remote(target)]
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text("utf-8")), path


def test_links_lead_to_a_page_and_a_place_in_it(pages):
    for path, page in pages.items():
        for link in page.links + page.loads:
            target, _, place = link.partition("#")
            if is_remote(target) or target.startswith(("mailto:", "data:")):
                continue
            target = urllib.parse.unquote(target.partition("?")[0])
            there = (path.parent / target).resolve() if target else path
            assert there.exists(), (path.name, link)
            if place and there in pages:
                assert urllib.parse.unquote(place) in pages[there].ids, (path.name, link)


def test_the_notebooks_are_shown_with_their_pictures(site, pages):
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(notebooks) >= 4
    for path in notebooks:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        drawn = sum("image/png" in output.get("data", {}) for output in outputs)
        page = pages[site / "notebooks" / f"{path.stem}.html"]
        assert 0 < drawn <= sum("_images/" in target for target in page.loads), path.stem


PUBLIC = [optax_rmsprop, dialects, denominators, interop, recipes, sharding, storage]
# Of use to other modules of the package alone.
INTERNAL = {
    f"optax_rmsprop.storage.{name}"
    for name in ("encoded_like", "fields_of", "moments_of", "second_moments", "shown")
}


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


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("selenium", reason="a browser is led by selenium")
    if screenshots.programs() is None:
        pytest.skip("needs a browser: Debian's packages chromium and chromium-driver")
    with screenshots.chromium() as made:
        yield made


@pytest.fixture
def compare(browser, site):
    """The page that computes, opened anew."""
    browser.get((site / "docs" / "compare.html").as_uri())
    return browser


def script(browser, expression, *arguments):
    """The value of a JavaScript expression, in which `given` is what follows."""
    return browser.execute_script(f"const given = [...arguments]; return {expression};", *arguments)


REAL = [
    name
    for name in recorded.NAMES
    if name not in recorded.EXCEPTIONS
    and not {"sparse", "complex_mode"} & recorded.RECORDS["configs"][name].keys()
]


def test_the_scripts_rule_gives_the_recorded_trajectories(compare):
    assert len(REAL) > 160
    for name in REAL:
        run = recorded.rounded(recorded.RECORDS["configs"][name])
        start, grads, rates = recorded.inputs(name, run)
        rates = np.broadcast_to(rates, len(grads)).tolist()
        given = [run, start.tolist(), grads.tolist(), rates]
        after = np.array(script(compare, "trajectory(...given)", *given))
        single = run["dtype"] == "float32" or run.get("clip_norm_rounding")
        whole = not single and name not in recorded.NOT_THE_FIRST_STEP
        bound = 1e-12 if whole else allowed(name)
        assert (recorded.difference(name, after) <= bound).all(), name


ROW_DATA = [truth.data(row) for row in ROWS]
RULES = {row.framework: data for row, data in zip(ROWS, ROW_DATA, strict=True) if "rule" in data}
NUMBERS = {"lr": 0.03, "decay": 0.7, "momentum": 0.6, "eps": 0.02, "weight_decay": 0.05}
GRADIENTS = np.random.default_rng(0).normal(size=20)
DROP, AT = 0.25, 8


def trajectory(call):
    """The parameter before the first step and after each, as a call of the page makes them."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        tx = eval(call, NAMES | {"jnp": jnp})
        after, *_ = recorded.trajectory(tx, np.array([0.8]), GRADIENTS[:, None])
    return after[:, 0]


def in_script(browser, rule, *arguments):
    """The same of a rule, an expression of JavaScript."""
    rates = f"ratesOf({NUMBERS['lr']}, {DROP}, {AT}, 20)"
    steps = [[g] for g in GRADIENTS.tolist()]
    expression = f"trajectory({rule}, [0.8], given[0], {rates}).flat()"
    return np.array(script(browser, expression, steps, *arguments))


def test_a_rows_own_numbers_give_its_own_call(compare):
    assert len(RULES) > 50
    for row in ROWS:
        if row.framework in RULES and "lambda" not in row.call:  # No two lambdas are equal.
            data = RULES[row.framework]
            call = script(
                compare, "callOf(given[0], given[0].numbers, given[0].rule.centered)", data
            )
            assert eval(call, NAMES) == eval(row.call, NAMES | {"learning_rate": truth.RATE}), call


@pytest.mark.parametrize("centered", [False, True])
def test_the_call_of_a_row_makes_the_steps_that_the_page_shows(compare, centered):
    for name, row in RULES.items():
        if centered and not row["centering"]:
            continue
        call = script(compare, f"callOf(...given, {DROP}, {AT})", row, NUMBERS, centered)
        after = in_script(compare, "ruleOf(...given.slice(1))", row, NUMBERS, centered)
        np.testing.assert_allclose(after, trajectory(call), rtol=0, atol=1e-12, err_msg=name)


def test_the_older_mxnets_make_the_steps_of_their_sources(compare):
    """As they have it: n and g are averages, delta is the step, wd is the weight decay."""
    lr, decay, mu, eps, wd = NUMBERS.values()

    def after(step):
        p, n, g, delta, history = 0.8, 0.0, 0.0, 0.0, [0.8]
        for t, grad in enumerate(GRADIENTS):
            rate = lr if t + 1 < AT else lr * DROP
            p, n, g, delta = step(p, n, g, delta, grad, rate)
            history.append(p)
        return history

    def averages(n, g, grad):
        return (1 - decay) * grad * grad + decay * n, (1 - decay) * grad + decay * g

    def centred_0_8(p, n, g, delta, grad, lr):
        n, g = averages(n, g, grad)
        delta = mu * delta - lr * (grad / np.sqrt(n - g * g + 1e-4) + wd * p)
        return p + delta, n, g, delta

    def plain_0_9(p, n, g, delta, grad, lr):
        grad = grad + wd * p
        n, g = averages(n, g, grad)
        return p - lr * grad / (np.sqrt(n) + eps), n, g, delta

    def centred_0_9(p, n, g, delta, grad, lr):
        grad = grad + wd * p
        n, g = averages(n, g, grad)
        delta = mu * delta - lr * grad / (np.sqrt(n - g * g) + eps)
        return p + delta, n, g, delta

    for name, centered, step in [
        ("MXNet 0.8", True, centred_0_8),
        ("MXNet 0.9.5", False, plain_0_9),
        ("MXNet 0.9.5", True, centred_0_9),
    ]:
        shown = in_script(compare, "ruleOf(...given.slice(1))", RULES[name], NUMBERS, centered)
        np.testing.assert_allclose(shown, after(step), rtol=0, atol=1e-12, err_msg=name)


OWN = {
    "eps_mode": ["inside", "outside", "max"],
    "v_init": [0, 1],
    "lr_place": ["inside", "outside"],
    "centered": [False, True],
    "nesterov": [False, True],
    "weight_decay_kind": ["coupled_l2", "decoupled"],
    "bias_correction": [False, True],
}
COMBINATIONS = [dict(zip(OWN, made, strict=True)) for made in itertools.product(*OWN.values())]


@pytest.mark.parametrize(
    "switches", COMBINATIONS[::11], ids=lambda s: "-".join(map(str, s.values()))
)
def test_a_chain_of_switches_makes_the_steps_that_the_page_shows(compare, switches):
    call = script(compare, f"chainOf(given[0], {DROP}, {AT})", NUMBERS | switches)
    after = in_script(compare, "given[1]", NUMBERS | switches)
    np.testing.assert_allclose(after, trajectory(call), rtol=0, atol=1e-12)


def test_the_page_shows_what_its_fields_say(compare):
    def cells():
        lines = compare.find_elements("css selector", "#steps tbody tr")
        return [[cell.text for cell in line.find_elements("tag name", "td")] for line in lines]

    def write(place, text):
        place = compare.find_element("id", place)
        place.clear()
        place.send_keys(text)

    def sentence():
        return compare.find_element("id", "sentence").text

    assert "parts from PyTorch 2.13 at step 1;" in sentence() and "at step 11." in sentence()
    assert len(cells()) == 20 and sentence().startswith("TensorFlow 1")
    write("gradients", "2, 0 -1")
    write("number-eps", "0.5")
    write("number-momentum", "0")
    call = compare.find_element("css selector", ".rms-call pre").text
    assert call.startswith("tx = dialects.torch(") and call.endswith("alpha=0.9, eps=0.5)")
    shown = np.array([float(line[2]) for line in cells()])
    expected = script(
        compare,
        "trajectory(ruleOf(TRUTH[0], given[0], false), [1], [[2], [0], [-1]], [0.01, 0.01, 0.01])",
        {"lr": 0.01, "decay": 0.9, "momentum": 0, "eps": 0.5, "weight_decay": 0},
    )
    np.testing.assert_allclose(shown, np.ravel(expected)[1:], atol=1e-6)
    write("number-decay", "1")
    assert sentence() == 'ρ, the decay must be in [0, 1), got "1"' and not cells()
    write("number-decay", "0.9")
    write("gradients", "1 x")
    assert sentence() == 'a gradient must be a number, got "x"'
    assert [x for x in compare.get_log("browser") if "theme mode" not in x["message"]] == []


def test_the_chooser_gives_the_call_and_the_filter_the_rows(browser, site):
    browser.get((site / "docs" / "dialects.html").as_uri())
    script(browser, "document.getElementById('chooser-framework').value = 3, 0")
    change = "document.getElementById('chooser-framework').dispatchEvent(new Event('change'))"
    script(browser, change)
    assert browser.find_element("id", "chooser-call").text.startswith(f"tx = {ROWS[3].call}")
    browser.find_element("id", "filter").send_keys("keras decoupled")
    seen = [row for row in browser.find_elements("css selector", "table tbody tr")]
    seen = [row.text for row in seen if row.is_displayed()]
    assert len(seen) == 2 and all("decoupled" in text for text in seen)
    assert [x for x in browser.get_log("browser") if "theme mode" not in x["message"]] == []
