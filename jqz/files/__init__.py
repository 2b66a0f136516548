"""Files: trees of codes, grids and floats in a safetensors container.

``jqz.save(path, tree)`` and ``jqz.load(path)``; ``metadata(path)`` reads the strings beside them, and ``Entropy()`` is
what ``save`` takes as ``compress=``. Plain arrays, as other programs write them: ``safetensors.read`` and ``write``.
They need the extra ``jqz[files]``.
"""

from jqz.files import safetensors
from jqz.files.container import load, metadata, save
from jqz.files.range_coding import Entropy

__all__ = ["Entropy", "load", "metadata", "safetensors", "save"]
