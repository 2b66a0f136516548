"""What LiteRT calls things, and how its files share equal numbers."""

import typing

import numpy as np

#: LiteRT's names of JAX's functions of numbers.
FUNCTIONS = {
    "add": "ADD", "add_any": "ADD", "sub": "SUB", "mul": "MUL", "div": "DIV", "max": "MAXIMUM", "min": "MINIMUM",
    "neg": "NEG", "abs": "ABS", "exp": "EXP", "log": "LOG", "sqrt": "SQRT", "rsqrt": "RSQRT", "tanh": "TANH",
    "logistic": "LOGISTIC", "gt": "GREATER", "ge": "GREATER_EQUAL", "lt": "LESS", "le": "LESS_EQUAL",
}  # fmt: skip
#: The versions of operators that a file asks for: 2 where nothing is said.
VERSIONS = {
    **dict.fromkeys(FUNCTIONS.values(), 1), "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2,
    "MAXIMUM": 2, "MINIMUM": 2, "RESHAPE": 1, "SOFTMAX": 1, "SUM": 1, "SELECT_V2": 1, "BATCH_MATMUL": 1,
}  # fmt: skip


def sharing(kind: typing.Any) -> typing.Any:
    """A builder that writes equal vectors of numbers once: zero points, above all, are 8 bytes a channel."""

    class Sharing(kind):
        def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802
            known = self.__dict__.setdefault("vectors", {})
            key = x.dtype.str, x.tobytes()
            if key not in known:
                known[key] = super().CreateNumpyVector(x)
            return known[key]

    return Sharing
