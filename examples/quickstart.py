"""Quantize a Flax Linen model: after training, in training, and in inference.

Use: python examples/quickstart.py --bits 2 --steps 500
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jqz


class Model(nn.Module):
    """Three dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64)(nn.relu(nn.Dense(64)(x))))
        return nn.Dense(3)(x)


model = Model()


def rings(key, count):
    """Points in the plane, and which of three rings each lies in."""
    radius, turn = jax.random.uniform(key, (2, count), maxval=3.0)
    angle = 2 * jnp.pi / 3 * turn
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=1), radius.astype(jnp.int32)


def train(variables, x, y, steps, policy=None):
    """Adam on all of the data; with a policy, through rounded weights."""
    optimizer = optax.adam(3e-3)
    state = optimizer.init(variables)

    def loss(variables):
        rounded = jqz.fake_quantize(variables, policy) if policy else variables
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(rounded, x), y).mean()

    @jax.jit
    def step(variables, state):
        updates, state = optimizer.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    for _ in range(steps):
        variables, state = step(variables, state)
    return variables


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=3, help="of the weights, 2 to 8 (default 3)")
    parser.add_argument("--steps", type=int, default=300, help="of training, before and after rounding (default 300)")
    arguments = parser.parse_args()
    (x, y), (test_x, test_y) = (rings(jax.random.key(seed), 2048) for seed in (0, 1))
    variables = train(model.init(jax.random.key(2), x), x, y, arguments.steps)

    scheme = jqz.Symmetric(bits=arguments.bits, granularity=jqz.PerAxis(-1))
    policy = jqz.Policy({"**/Dense_2/kernel": None, "**/kernel": scheme})  # the last layer stays float
    qparams = jqz.quantize(variables, policy)
    tuned = jqz.quantize(train(variables, x, y, arguments.steps, policy), policy)

    infer = jax.jit(jqz.quantized(model.apply))
    int8 = jax.jit(jqz.quantized(model.apply, inputs=jqz.Symmetric(bits=8)))
    for name, logits, size in (
        ("float", model.apply(variables, test_x), jqz.size_bytes(variables)),
        ("rounded after training", infer(qparams, test_x), jqz.size_bytes(qparams)),
        ("trained straight-through", infer(tuned, test_x), jqz.size_bytes(tuned)),
        ("the same, int8 activations", int8(tuned, test_x), jqz.size_bytes(tuned)),
    ):
        accuracy = 100 * float(jnp.mean(logits.argmax(-1) == test_y))
        print(f"{name:28} {accuracy:5.1f} %  {size:6d} bytes")


if __name__ == "__main__":
    main()
