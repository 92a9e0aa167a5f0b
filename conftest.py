"""Two lanes of tests, and what is compiled once for all processes and runs."""

import contextlib
import itertools
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

CACHE = Path(__file__).parent / ".cache" / "xla"
LARGEST = 2**30  # bytes of compiled programs that are kept from run to run


def pytest_addoption(parser):
    """`--all` is the thorough lane, and `--share` makes any lane short."""
    parser.addoption("--all", action="store_true", help="run the tests that are marked slow too")
    parser.addoption("--share", type=int, default=1, metavar="N", help="one case in N of each test")


def pytest_configure(config):
    """Empty a cache that has become too large, before any worker starts."""
    if not hasattr(config, "workerinput") and _size(CACHE) > LARGEST:
        shutil.rmtree(CACHE, ignore_errors=True)


def pytest_report_header(config):
    """Say which lane it is."""
    return "lane: thorough" if _asked_for(config) else "lane: short; --all runs what is slow too"


def pytest_collection_modifyitems(config, items):
    """Leave out what is slow, and the proofs, unless they were asked for."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker(pytest.mark.api)
    out = {"slow", "proof"} - ({"slow"} if _asked_for(config) else set())
    out -= {name for name in out if name in (config.option.markexpr or "")}
    fast = [item for item in items if not any(map(item.get_closest_marker, out))]
    chosen = set(_share(fast, config.option.share))
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


@pytest.fixture(scope="session", autouse=True)
def compiled_once():
    """Keep compiled programs in one folder, for workers, what they start, and later runs."""
    settings = {
        "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE)),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        yield


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go():
    """JAX keeps every program that it compiled: without this, a worker grows to gigabytes."""
    yield
    jax.clear_caches()


def _share(items: list[pytest.Item], n: int) -> Iterator[pytest.Item]:
    """One in `n` of the cases of each test, and at least one: always the same, in no pattern."""
    for _, cases in itertools.groupby(items, lambda item: item.nodeid.partition("[")[0]):
        order = sorted(cases, key=lambda item: zlib.crc32(item.nodeid.encode()))
        yield from order[: -(-len(order) // n)]


def _asked_for(config: pytest.Config) -> bool:
    """Whether slow tests were: by their flag, their marker, a file, a name, or a failure before."""
    named = any(".py" in argument for argument in config.args)
    chosen = config.option.keyword or getattr(config.option, "lf", False)
    return bool(config.option.all or named or chosen or "slow" in config.option.markexpr)


def _size(folder: Path) -> int:
    with contextlib.suppress(OSError):  # Another run may empty it.
        return sum(file.stat().st_size for file in folder.glob("*"))
    return 0
