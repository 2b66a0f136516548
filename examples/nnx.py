"""Quantize a Flax NNX model by a policy and run it on integers.

Use: python examples/nnx.py --size 64
"""

import argparse

import jax
import jax.numpy as jnp
from flax import nnx

import jqz


class Model(nnx.Module):
    """Convolutions with a batch norm and residuals."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 32, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(32, use_running_average=True, rngs=rngs)
        self.layers = nnx.List([nnx.Conv(32, 32, (3, 3), rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.stem(images)))
        for layer in self.layers:
            x = x + nnx.relu(layer(x))
        return self.head(x.mean((1, 2)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32, help="of the square images, in pixels (default 32)")
    parser.add_argument("--batch", type=int, default=8, help="how many images (default 8)")
    arguments = parser.parse_args()
    images = jax.random.normal(jax.random.key(0), (arguments.batch, arguments.size, arguments.size, 3))

    # a graph and a state: the state is a tree like any other, the rest is a function of it
    graph, state = nnx.split(Model(nnx.Rngs(0)))

    def model(state, images):
        return nnx.merge(graph, state)(images)

    # the first rule that matches decides; biases and the batch norm stay float
    policy = jqz.Policy(
        {
            "stem/kernel": jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1)),
            "layers/*/kernel": jqz.Symmetric(bits=4, granularity=jqz.PerAxis(-1), range=jqz.ranges.MSE()),
            "head/kernel": None,
        },
        inputs={"head/kernel": None, "**": jqz.Symmetric(bits=8)},  # what meets the weight at this path
    )
    qstate = jqz.quantize(state, policy)
    print(qstate["layers"][0]["kernel"].get_value())
    print(f"{jqz.size_bytes(state)} bytes in float32, {jqz.size_bytes(qstate)} in codes")

    exact = jax.jit(model)(state, images)
    decoded = jax.jit(jqz.quantized(model))(qstate, images)
    integer = jax.jit(jqz.quantized(model, inputs=policy))(qstate, images)

    def error(logits):
        return 100 * float(jnp.linalg.norm(logits - exact) / jnp.linalg.norm(exact))

    print(f"codes decoded, float products: logits {error(decoded):.1f} % off")
    print(f"int8 activations, integer products: logits {error(integer):.1f} % off")


if __name__ == "__main__":
    main()
