"""Strictness for every test, and the compilation cache of the checkout."""

import pathlib

import jax
import pytest

pytest.register_assert_rewrite("laws", "studies", "observer_laws")

_CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run long reproductions too")


def pytest_configure(config):
    jax.config.update("jax_compilation_cache_dir", str(_CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="a long reproduction; --slow runs it")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)
