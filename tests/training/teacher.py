"""A small network to imitate: students of any kind train on what it says, in one compiled loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jqz


def model(params, x):
    x = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return x @ params["b"]["kernel"]


@functools.cache
def task():
    """The teacher's parameters, inputs and outputs, in NumPy."""
    rng = np.random.default_rng(0)
    params = {
        "a": {"kernel": rng.standard_normal((8, 32)) / 8**0.5, "bias": rng.standard_normal(32) / 3},
        "b": {"kernel": rng.standard_normal((32, 4)) / 32**0.5},
    }
    params = jax.tree.map(np.float32, params)
    x = rng.standard_normal((256, 8)).astype(np.float32)
    return params, x, np.asarray(model(params, x))


def error(y):
    """The mean squared error against the teacher."""
    return jnp.mean((y - task()[2]) ** 2)


def rounded_error(policy, params=None):
    """That of the teacher with rounded weights, untrained."""
    teacher, x, _ = task()
    return float(jax.jit(lambda params: error(model(jqz.fake_quantize(params, policy), x)))(params or teacher))


def train(loss, variables, optimizer=None, steps=150, state=None):
    """Minimises ``loss(variables, step)``; the variables and the optimizer's state at the end."""
    optimizer = optimizer or optax.adam(optax.cosine_decay_schedule(0.01, steps))

    def step(carry, turn):
        variables, state = carry
        grads = jax.grad(loss)(variables, turn)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            updates, state = optimizer.update(grads, state, variables)
        return (optax.apply_updates(variables, updates), state), None

    @jax.jit
    def run(variables):
        carry = variables, optimizer.init(variables) if state is None else state
        return jax.lax.scan(step, carry, jnp.arange(steps))[0]

    return run(jax.tree.map(jnp.asarray, variables))
