"""Tests against the frameworks themselves: each runs where its framework is installed."""

import importlib.util
import os

import pytest


def needed(*modules: str) -> None:
    """Skip without these modules; fail instead where all of them are meant to be there."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            if os.environ.get("OPTAX_RMSPROP_LIVE") == "1":
                pytest.fail(f"{module} is not installed")
            pytest.skip(f"{module} is not installed")
