"""Files for other runtimes, which compute the codes that jqz computes.

============= =================================== ======================================================
function      file                                computes what ``complete(net, example)`` does by
============= =================================== ======================================================
``tflite``    LiteRT; extra ``tflite``            ``requant.XNNPACK()``; ``Gemmlowp()``; ``Int16x8()``
``onnx``      ONNX Runtime; extra ``onnx``        ``requant.ONNXRuntime()``
``header``    a C compiler; no extra              ``Gemmlowp()``
``stablehlo`` any XLA; no extra                   whatever the net's own rule is
============= =================================== ======================================================
"""

from jqz._complete import complete
from jqz._runtime import Codes, Dynamic, Floats, Integers, Interface, Numbers, Values
from jqz.export.header import header
from jqz.export.onnx import onnx
from jqz.export.stablehlo import stablehlo
from jqz.export.tflite import tflite

__all__ = [
    "Codes",
    "Dynamic",
    "Floats",
    "Integers",
    "Interface",
    "Numbers",
    "Values",
    "complete",
    "header",
    "onnx",
    "stablehlo",
    "tflite",
]
