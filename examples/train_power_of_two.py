"""Train a digit classifier whose weights are 4-bit powers of two, by a chain of two schemes.

Use: python examples/train_power_of_two.py --bits 3 --epochs 20
It needs scikit-learn for the images: pip install 'jqz[demo]'.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import jqz


class Model(nn.Module):
    """A convolution and two dense layers."""

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Conv(16, (3, 3), padding="VALID")(images))
        x = nn.relu(nn.Dense(32)(x.reshape((x.shape[0], -1))))
        return nn.Dense(10)(x)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, default=4, help="of the powers of two, 2 to 8 (default 4)")
    parser.add_argument("--epochs", type=int, default=10, help="of training (default 10)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default 64)")
    arguments = parser.parse_args()

    raw = load_digits()
    order = np.random.default_rng(0).permutation(len(raw.target))
    images = jnp.asarray(raw.images[order, :, :, None] / 16, jnp.float32)
    labels = jnp.asarray(raw.target[order], jnp.int32)
    (test_images, images), (test_labels, labels) = (jnp.split(a, [450]) for a in (images, labels))

    # 8-bit integers first, then powers of two of these: values are scale * +-2**n, n a small integer
    chain = jqz.Symmetric(bits=8, granularity=jqz.PerAxis(-1)) >> jqz.PowerOfTwo(bits=arguments.bits)
    policy = jqz.Policy({"**/kernel": chain})
    model, optimizer = Model(), optax.adam(2e-3)

    def loss(variables, batch):
        logits = model.apply(jqz.fake_quantize(variables, policy), images[batch])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[batch]).mean()

    def step(carry, batch):
        variables, state = carry
        value, grads = jax.value_and_grad(loss)(variables, batch)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(variables, updates), state), value

    @jax.jit
    def epoch(carry, key):
        steps = len(labels) // arguments.batch
        batches = jax.random.permutation(key, len(labels))[: steps * arguments.batch].reshape(steps, -1)
        return jax.lax.scan(step, carry, batches)

    variables = model.init(jax.random.key(0), images[:1])
    carry = variables, optimizer.init(variables)
    for number, key in enumerate(jax.random.split(jax.random.key(1), arguments.epochs)):
        carry, losses = epoch(carry, key)
        print(f"epoch {number + 1}: loss {float(losses.mean()):.3f}")

    qparams = jqz.quantize(carry[0], policy)
    kernel = jqz.dequantize(qparams)["params"]["Dense_0"]["kernel"]
    print("magnitudes in the first column:", np.unique(np.abs(np.asarray(kernel[:, 0]))))
    print(f"{jqz.size_bytes(carry[0])} bytes in float32, {jqz.size_bytes(qparams)} in codes")
    infer = jax.jit(jqz.quantized(model.apply, inputs=jqz.Symmetric(bits=8)))
    correct = infer(qparams, test_images).argmax(-1) == test_labels
    print(f"test accuracy on integers: {100 * float(correct.astype(jnp.float32).mean()):.1f} %")


if __name__ == "__main__":
    main()
