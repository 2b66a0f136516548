"""Fast forms of whole functions."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import linen as nn

import jqz


def close(got, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()), got, wanted)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model(name):
    fn, variables, x = models.MODELS[name]()
    close(*jax.jit(lambda variables, x: (jqz.lowered(fn)(variables, x), fn(variables, x)))(variables, x))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (3, 3), (2, 2), "SAME")
        x = nn.Conv(4, (3, 3), feature_group_count=4)(x)
        return nn.pooling.pool(x, np.float32(0), jax.lax.add, (2, 2), (2, 2), "VALID")


def forms(fn, *args):
    """How many equations have a form of their own on CPU."""
    return str(jax.make_jaxpr(fn)(*args)).count("platform_index")


x = jax.random.normal(jax.random.key(0), (3, 2, 8, 8, 3))
model = Net()
variables = model.init(jax.random.key(1), x[0])


def test_gradients():
    def loss(fn):
        return jax.grad(lambda v, x: jnp.sin(fn(v, x)).sum(), argnums=(0, 1))

    close(*jax.jit(lambda v, x: (loss(jqz.lowered(model.apply))(v, x), loss(model.apply)(v, x)))(variables, x[0]))


@jax.custom_jvp
def doubled(v, x):
    return model.apply(v, x)


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * jax.jvp(model.apply, primals, tangents)[1]))

BODIES = {
    "scan": lambda v, x: jax.lax.scan(lambda c, x: (c, model.apply(v, x)), 0, x)[1],
    "while": lambda v, x: jax.lax.fori_loop(0, 2, lambda i, y: y + model.apply(v, x[i]), jnp.zeros((2, 2, 2, 4))),
    "cond": lambda v, x: jax.lax.cond(x.sum() < 1e9, lambda: model.apply(v, x[0]), lambda: jnp.ones((2, 2, 2, 4))),
    "checkpoint": lambda v, x: jax.checkpoint(model.apply)(v, x[0]),
    "vmap": lambda v, x: jax.vmap(model.apply, (None, 0))(v, x),
    "jit": lambda v, x: jax.jit(model.apply)(v, x[0]),
    "the author's derivative": lambda v, x: doubled(v, x[0]),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_walked_through(name):
    fn, fast = BODIES[name], jqz.lowered(BODIES[name])
    assert forms(fast, variables, x) >= 3 > forms(fn, variables, x) == 0
    reverse = name != "while"  # whose loop has no reverse mode

    def with_gradient(f, v, x):
        if not reverse:
            return jax.jvp(lambda x: f(v, x), (x,), (jnp.cos(x),))
        y, pull = jax.vjp(f, v, x)
        return y, pull(jnp.cos(y))

    close(*jax.jit(lambda v, x: (with_gradient(fast, v, x), with_gradient(fn, v, x)))(variables, x))


def test_around_it():
    fast = jqz.lowered(model.apply)

    @jax.jit
    def run(v, x):
        scanned = jax.lax.scan(lambda c, x: (c, fast(v, x)), 0, x)[1]
        return (scanned, jax.vmap(lambda x: fast(v, x))(x)), (BODIES["vmap"](v, x),) * 2

    close(*run(variables, x))


def test_a_function_is_wanted():
    with pytest.raises(TypeError, match="wanted a function"):
        jqz.lowered(variables)
