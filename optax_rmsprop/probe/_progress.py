"""What a search says of itself, where it takes long and somebody looks."""

import functools
import sys
import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

PATIENCE = 3.0  # seconds before the first word


def told(search: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The function, which says on a terminal that it goes on, and for how long it has."""

    @functools.wraps(search)
    def telling(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if sys.stderr is None or not sys.stderr.isatty():  # pyright: ignore[reportUnnecessaryComparison]
            return search(*args, **kwargs)
        done = threading.Event()
        teller = threading.Thread(target=_tell, args=(search.__name__, done), daemon=True)
        teller.start()
        try:
            return search(*args, **kwargs)
        finally:
            done.set()
            teller.join()

    return telling


def _tell(name: str, done: threading.Event) -> None:
    began, wait = time.monotonic(), PATIENCE
    while not done.wait(wait):
        text = f"\r{name}: rarer rules are tried, {time.monotonic() - began:.0f} s"
        print(text, end="", file=sys.stderr, flush=True)
        wait = 1.0
    if wait != PATIENCE:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
