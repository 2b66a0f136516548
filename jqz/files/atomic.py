"""Files and folders that appear whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import typing
from collections.abc import Iterator

Path = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[typing.BinaryIO]:
    """A file to write: the name stands for the old bytes, or for all of the new ones once the block ends.

    They are written beside their place, flushed to the disk and renamed. A process that is killed on the way leaves a
    hidden file ``.NAME.*.part`` behind; a block that raises leaves nothing. A link stays one, to the new file.

    Raises:
      ValueError: there is something of this name that is no file: a folder, or a device.
    """
    target = pathlib.Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ValueError(f"{str(path)!r} is there and no file, and only a file is replaced. Use another name.")
    part = _part(target)
    with _for(path):
        part.touch(exist_ok=False)
    try:
        with open(part, "wb") as file:
            if target.exists():
                os.chmod(part, target.stat().st_mode & 0o7777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync(target.parent)  # the rename itself


@contextlib.contextmanager
def creating(path: Path) -> Iterator[pathlib.Path]:
    """Where to put a folder that does not exist yet: it moves to its name once the block ends.

    All that is in it is flushed to the disk before. A process that is killed on the way leaves a hidden folder
    ``.NAME.*.part`` behind; a block that raises leaves nothing. No folder is replaced: that could not be done in one
    step, and would delete what else is in it.

    Raises:
      ValueError: there is something of this name.
    """
    target = pathlib.Path(os.path.realpath(path))
    if os.path.lexists(target):
        raise ValueError(f"{str(path)!r} exists, and a folder is never replaced. Use another name, or remove it.")
    part = _part(target)
    with _for(path):
        part.mkdir()
    try:
        yield part / target.name
        for folder, _, files in os.walk(part):
            for name in files:
                _sync(os.path.join(folder, name))
            _sync(folder)
        os.rename(part / target.name, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _sync(target.parent)


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed there."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, files in os.walk(path) for name in files)


def _part(target: pathlib.Path) -> pathlib.Path:
    """A name beside the target that nothing has."""
    return target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.part")


@contextlib.contextmanager
def _for(path: Path) -> Iterator[None]:
    """Names the file that was asked for where the one beside it cannot be made."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror, os.fspath(path)) from error


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
