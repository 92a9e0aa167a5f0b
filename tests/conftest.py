"""Eight CPU devices, strict dtype promotion, and a switch for 64-bit arithmetic."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def strict_promotion():
    """Our code never mixes dtypes by accident: an implicit promotion is an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def x64():
    """Float64 where it is asked for, as in a process with JAX_ENABLE_X64=1."""
    with jax.enable_x64(True):
        yield
