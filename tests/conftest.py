"""Eight CPU devices, strict dtype promotion, and a switch for 64-bit arithmetic."""

import os

import jax
import pytest

if "JAX_NUM_CPU_DEVICES" not in os.environ:
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def strict_promotion():
    """Our code never mixes dtypes by accident: an implicit promotion is an error."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def grid():
    """The shape of a mesh of two axes: of one device, where there are not eight."""
    return (4, 2) if jax.device_count() >= 8 else (1, 1)


@pytest.fixture
def eight_devices():
    """For what only several devices can show."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")


@pytest.fixture
def x64():
    """Float64 where it is asked for, as in a process with JAX_ENABLE_X64=1."""
    with jax.enable_x64(True):
        yield
