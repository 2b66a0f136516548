"""Deep Compression's last training step: the codes stay, the grid learns."""

import typing

import jax
import jax.numpy as jnp

from jqz._qtensor import QTensor, is_qtensor


def trainable(qparams: typing.Any) -> typing.Any:
    """What is left to train in a quantized tree: the grids of its QTensors, and its other floating leaves.

    Deep Compression prunes a network, clusters what is left, and trains the centroids::

        params: trained with prune(policy, Polynomial(0.9, end))      in the chain of the optimizer
        qparams = quantize(params, Codebook(bits=4, levels=jqz.schemes.SparseKMeans()))
        trained = trainable(qparams)                                  for any optimizer, few numbers
        loss(trained) = ... dequantize(rebuild(qparams, trained)) ...

    Since the codes choose which weights share a centroid c_k, its gradient is theirs in sum:
    d loss / d c_k = sum of d loss / d w_i over the weights with code k. In the same way other schemes train their
    scales, which costs nothing in size; those of ``PowerOfTwo`` and ``FixedPoint`` leave the powers of two then, and
    those of ``BlockFloat``, which are codes themselves, stay. Codes that straight-through training would move stay
    where they are, so use it as the last step, for the last bit of accuracy; ``jqz.learnable`` trains weights and
    scales together.

    Args:
      qparams: what ``quantize`` returns.

    Returns:
      A tree of floating arrays, in which a grid stands for each QTensor, and None for integers.

    >>> import jax, jax.numpy as jnp, jqz.training
    >>> w = jnp.array([0.0, 1.0, 1.2, -2.0, 0.0])
    >>> q = jqz.quantize(w, jqz.Codebook(bits=2, levels=jqz.schemes.SparseKMeans()))
    >>> trained = jqz.training.trainable(q)
    >>> def loss(trained):
    ...     return (jqz.dequantize(jqz.training.rebuild(q, trained)) * jnp.arange(5.0)).sum()
    >>> jax.grad(loss)(trained).levels.tolist()
    [[3.0, 0.0, 1.0, 2.0]]

    References: arXiv:1510.00149.
    """
    return jax.tree.map(
        lambda leaf: jax.tree.map(_floating, leaf.grid) if is_qtensor(leaf) else _floating(leaf),
        qparams,
        is_leaf=is_qtensor,
    )


def rebuild(qparams: typing.Any, trained: typing.Any) -> typing.Any:
    """The quantized tree with other grids under its codes, and other floating leaves.

    A zero in a grid stays zero, and gets no gradient: pruned weights stay pruned.

    Args:
      qparams: the tree that ``trainable`` was given.
      trained: what ``trainable`` returned, after any number of updates.

    >>> import jax, jqz.training
    >>> q = jqz.quantize({"w": jnp.array([[-1.0, 0.4, 1.0]]), "b": jnp.zeros(3)}, jqz.Symmetric(bits=2))
    >>> trained = jax.tree.map(lambda x: x + 0.5, jqz.training.trainable(q))
    >>> q = jqz.training.rebuild(q, trained)
    >>> jqz.dequantize(q["w"]).tolist(), q["b"].tolist()
    ([[-1.5, 0.0, 1.5]], [0.5, 0.5, 0.5])
    """

    def leaf(old: typing.Any, new: typing.Any) -> typing.Any:
        if not is_qtensor(old):
            return old if new is None else new
        grid = jax.tree.map(lambda a, b: a if b is None else jnp.where(a == 0, 0, b).astype(a.dtype), old.grid, new)
        return QTensor(old.payload, grid, old.scheme, old.dtype, old.length)

    return jax.tree.map(leaf, qparams, trained, is_leaf=is_qtensor)


def _floating(x: typing.Any) -> typing.Any:
    return x if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) else None
