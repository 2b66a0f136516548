"""StableHLO programs."""

import typing
from collections.abc import Sequence

from jqz._inference import quantized


def stablehlo(net: typing.Any, example: typing.Any, *, platforms: Sequence[str] = ("cpu",)) -> bytes:
    """A quantized net as the bytes of a StableHLO program, its codes inside: ``jax.export`` reads it back.

    The program is the one that ``net`` runs, integers and all: ``jax.export.deserialize(file).call(x)`` equals
    ``net(x)``. It is portable and versioned as ``jax.export`` promises; Python code is not part of it.

    Use it to serve a net without its code. On phones and boards, use ``tflite``.

    Args:
      net: from ``convert``.
      example: an input, or a tuple of arguments, whose shapes are the program's; ``jax.ShapeDtypeStruct`` does, too,
        with symbolic dimensions from ``jax.export.symbolic_shape`` if the net allows them.
      platforms: that the program shall run on; those of ``jax.export``.

    >>> import jax, jax.export, jax.numpy as jnp, jqz, jqz.export
    >>> policy = jqz.Policy(jqz.Symmetric(bits=8), inputs=jqz.Asymmetric(bits=8))
    >>> net = jqz.convert(lambda params, x: x @ params["w"], {"w": jnp.eye(4)}, [jnp.ones((2, 4))], policy)
    >>> program = jax.export.deserialize(bytearray(jqz.export.stablehlo(net, jnp.ones((2, 4)))))
    >>> bool(jnp.array_equal(program.call(jnp.ones((2, 4))), net(jnp.ones((2, 4)))))
    True
    """
    import jax.export

    args = example if isinstance(example, tuple) else (example,)
    run = quantized(net.fn, net.sites, requant=net.requant)
    program = jax.export.export(jax.jit(lambda *args: run(net.qparams, *args)), platforms=tuple(platforms))
    return bytes(program(*args).serialize())
