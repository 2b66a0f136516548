"""The step of a training loop: images augmented, a loss with or without a teacher, an optax update."""

import typing
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

#: (float images, key) -> float images
Augment = Callable[[jax.Array, jax.Array], jax.Array]
#: (parameters, other variables, images) -> (logits, other variables): a network as it trains
Apply = Callable[[typing.Any, typing.Any, jax.Array], tuple[jax.Array, typing.Any]]


class State(typing.NamedTuple):
    """What a step changes."""

    params: typing.Any
    rest: typing.Any
    optimizer: typing.Any


def flip(images: jax.Array, key: jax.Array) -> jax.Array:
    """Mirrors half of the images, left to right."""
    mirrored = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def shift(most: int) -> Augment:
    """Moves each image by up to ``most`` pixels either way; zeros come in."""

    def moved(images: jax.Array, key: jax.Array) -> jax.Array:
        wide = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
        corners = jax.random.randint(key, (len(images), 2), 0, 2 * most + 1)
        return jax.vmap(lambda x, at: jax.lax.dynamic_slice(x, (at[0], at[1], 0), images.shape[1:]))(wide, corners)

    return moved


def rotate(most: float) -> Augment:
    """Turns each image about its centre by up to ``most`` radians either way, bilinearly; zeros come in."""

    def turned(images: jax.Array, key: jax.Array) -> jax.Array:
        angles = jax.random.uniform(key, (len(images),), minval=-most, maxval=most)
        middle = np.array([(n - 1) / 2 for n in images.shape[1:3]], np.float32)
        rows, columns = (a - m for a, m in zip(jnp.indices(images.shape[1:3], jnp.float32), middle, strict=True))

        def one(image: jax.Array, angle: jax.Array) -> jax.Array:
            c, s = jnp.cos(angle), jnp.sin(angle)
            at = [c * rows - s * columns + middle[0], s * rows + c * columns + middle[1]]
            sample = jax.vmap(lambda x: jax.scipy.ndimage.map_coordinates(x, at, order=1), -1, -1)
            return sample(image)

        return jax.vmap(one)(images, angles)

    return turned


def make_step(
    apply: Apply,
    optimizer: optax.GradientTransformation,
    prepare: Callable[[jax.Array], jax.Array],
    augment: Sequence[Augment] = (),
    teacher: Callable[[jax.Array], jax.Array] | None = None,
    project: Callable[[typing.Any], typing.Any] = lambda params: params,
) -> typing.Any:
    """A step for ``loop.train``.

    Args:
      apply: the network as it trains.
      optimizer: an optax transformation.
      prepare: uint8 images to the network's input.
      augment: functions of float images (0 to 255) and a key, applied in order before ``prepare``.
      teacher: the logits of a network to distill from. The loss is then the mean of the cross entropies with the
        labels and with the teacher's probabilities, at temperature 1.
      project: what is done to the parameters after each update, such as clipping.
    """

    def step(state: State, images: jax.Array, labels: jax.Array, key: jax.Array) -> typing.Any:
        x = images.astype(jnp.float32)
        for one, own in zip(augment, jax.random.split(key, max(1, len(augment))), strict=False):
            x = one(x, own)
        x = prepare(x)

        def loss_of(params: typing.Any) -> typing.Any:
            logits, rest = apply(params, state.rest, x)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            if teacher is not None:
                likely = jax.nn.softmax(jax.lax.stop_gradient(teacher(x)))
                loss = (loss + optax.softmax_cross_entropy(logits, likely).mean()) / 2
            return loss, (rest, (logits.argmax(-1) == labels).mean(dtype=jnp.float32))

        (loss, (rest, right)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, kept = optimizer.update(grads, state.optimizer, state.params)
        return State(project(optax.apply_updates(state.params, updates)), rest, kept), loss, right

    return step


def reestimate(
    apply: Apply,
    state: State,
    images: np.ndarray,
    prepare: Callable[[jax.Array], jax.Array],
    batches: int = 20,
    batch: int = 500,
) -> typing.Any:
    """Batch norm's statistics as the mean over batches of training images, with the weights that there are now."""
    batch = min(batch, len(images))
    zeros = {**state.rest, "batch_stats": jax.tree.map(jnp.zeros_like, state.rest["batch_stats"])}

    @jax.jit
    def own(params: typing.Any, images: jax.Array) -> typing.Any:
        _, updated = apply(params, zeros, prepare(images))
        return jax.tree.map(lambda part: part / 0.1, updated["batch_stats"])  # momentum 0.9 keeps a tenth

    seen = [own(state.params, images[i : i + batch]) for i in range(0, len(images) - batch + 1, batch)[:batches]]
    return {**state.rest, "batch_stats": jax.tree.map(lambda *parts: sum(parts) / len(parts), *seen)}
