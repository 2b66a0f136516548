"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import typing
from collections.abc import Iterator

Path = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[typing.BinaryIO]:
    """A file to write: the name stands for the old bytes, or for all of the new ones once the block ends.

    They are written beside their place, flushed to the disk and renamed. A process that is killed on the way leaves a
    hidden file ``.NAME.*.part`` behind; a block that raises leaves nothing.
    """
    target = pathlib.Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with open(part, "xb") as file:
            if target.exists():
                os.chmod(part, target.stat().st_mode & 0o7777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
