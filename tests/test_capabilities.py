"""What a backend says it can run, it runs; and the table is complete."""

import jax
import jax.numpy as jnp
import pytest

import jqz
from jqz import _capabilities


def test_asked_under_jit():
    """Nothing of the trial enters the program, and it is made once."""
    _capabilities._of.cache_clear()
    found = []

    def traced(x):
        found.extend([jqz.capabilities(), jqz.capabilities()])
        return x

    assert not jax.make_jaxpr(traced)(1.0).eqns
    assert found[0] is found[1] is jqz.capabilities()


def test_every_claim_holds():
    """Of both primitives; on every backend int8 runs, since the kernels need it."""
    found = jqz.capabilities()
    assert found.backend == jax.default_backend()
    assert len(found.products) == 2 * len(_capabilities.TRIED)
    for primitive in ("dot", "convolution"):
        assert found.runs(primitive, jnp.int8, "int8")
        assert found.runs(primitive, jnp.bfloat16, jnp.bfloat16)
    for p in found.products:
        assert p.runs == (p.why == "")
        if p.primitive == "dot" and p.runs:
            a, b = jnp.ones((16, 32), jnp.dtype(p.lhs)), jnp.ones((32, 16), jnp.dtype(p.rhs))
            assert (jax.lax.dot(a, b, preferred_element_type=jnp.dtype(p.result)) == 32).all()


def test_the_table_names_every_pair():
    lines = str(jqz.capabilities()).splitlines()
    assert [tuple(line.split()[:3]) for line in lines[1:]] == list(_capabilities.TRIED)


def test_a_pair_that_was_not_tried():
    with pytest.raises(ValueError, match=r"Use runs\('dot', 'int8', 'int8'\)"):
        jqz.capabilities().runs("dot", jnp.int8, jnp.float16)
