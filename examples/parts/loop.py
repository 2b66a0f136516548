"""A training loop that a kill does not hurt: state in, state out, and everything else follows from the step's number.

The order of the images, their augmentation and the learning rate depend on the seed and on the number of the step
alone; the state is a pytree of arrays, kept in a file that is replaced in one piece. So a run that was killed and
started again ends with the same parameters, bit for bit, as one that was not.
"""

import functools
import pathlib
import sys
import time
import typing
import zipfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from parts.fashion_mnist import Data, Split, write_whole

#: (state, uint8 images, labels, key) -> (state, loss, share of right answers)
Step = Callable[[typing.Any, jax.Array, jax.Array, jax.Array], tuple[typing.Any, jax.Array, jax.Array]]
#: (state, uint8 images) -> class scores
Predict = Callable[[typing.Any, jax.Array], jax.Array]


class Plan(typing.NamedTuple):
    """How long, on how many images at a time, in which order; how often to save, in steps."""

    epochs: int
    batch: int
    seed: int = 0
    save_every: int = 100

    def steps(self, data: Data) -> int:
        return self.epochs * (len(data.train.labels) // self.batch)


class Record(typing.NamedTuple):
    """What a checkpoint holds: the state, the number of steps done, seconds spent, and the accuracy of each epoch."""

    state: typing.Any
    done: np.ndarray
    seconds: np.ndarray
    accuracy: np.ndarray


def save(path: pathlib.Path, tree: typing.Any) -> None:
    """Keeps a tree of arrays as npz, under their paths."""
    arrays = {jax.tree_util.keystr(at): np.asarray(leaf) for at, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    write_whole(path, lambda file: np.savez(file, **arrays))


def restore(path: pathlib.Path, like: typing.Any) -> typing.Any:
    """Reads what ``save`` kept into the structure of another tree.

    Raises:
      ValueError: the file is damaged, or holds a tree of other paths, shapes or dtypes.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(like)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as members:
            arrays = dict(members)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}. Remove it to start again.") from error
    wanted = {jax.tree_util.keystr(at): (leaf.shape, leaf.dtype) for at, leaf in flat}
    found = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    differ = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    if differ:
        raise ValueError(
            f"{path} belongs to another run: it differs in {differ[:3]}. Use another --cache, or remove it."
        )
    return treedef.unflatten([arrays[name] for name in wanted])


def evaluate(predict: Predict, state: typing.Any, split: Split, batch: int = 500) -> np.ndarray:
    """The class that a network chooses for each image; ``predict`` is compiled once, for ``batch`` images."""
    images = split.images
    batch = min(batch, len(images))
    starts = [min(i, len(images) - batch) for i in range(0, len(images), batch)]
    answers = np.zeros(len(images), np.int32)
    for start in starts:  # the last batch overlaps the one before, so that all have one shape
        answers[start : start + batch] = np.argmax(predict(state, images[start : start + batch]), -1)
    return answers


def accuracy(answers: np.ndarray, split: Split) -> float:
    """Percent of right answers."""
    return 100 * float((answers == split.labels).mean())


def train(
    name: str, step: Step, predict: Predict, state: typing.Any, data: Data, plan: Plan, folder: pathlib.Path
) -> Record:
    """Trains from ``state``, or from where an earlier call in the same folder stopped.

    ``folder`` gets ``last.npz``, with all that is needed to go on, and ``best.npz``, the state of the epoch that
    did best on the test images. Figures should be those of the last: the best was chosen by what it is measured on.
    """
    last, best = folder / "last.npz", folder / "best.npz"
    record = Record(state, np.int64(0), np.float64(0), np.full(plan.epochs, np.nan))
    if last.exists():
        record = restore(last, record)
    per_epoch, total = len(data.train.labels) // plan.batch, plan.steps(data)
    state, done, spent, accuracies = record.state, int(record.done), float(record.seconds), record.accuracy.copy()
    if done >= total:
        return record
    images, labels = jnp.asarray(data.train.images), jnp.asarray(data.train.labels)
    key = jax.random.key(plan.seed)

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state: typing.Any, images: jax.Array, labels: jax.Array, batch: jax.Array, number: jax.Array):
        return step(state, images[batch], labels[batch], jax.random.fold_in(key, number))

    state, started, seen = jax.tree.map(jnp.asarray, state), time.perf_counter(), []
    with progress(name, total, done) as tell:
        for number in range(done, total):
            epoch, place = divmod(number, per_epoch)
            if place == 0 or number == done:
                order = np.random.default_rng((plan.seed, epoch)).permutation(len(labels)).astype(np.int32)
            chosen = order[place * plan.batch : (place + 1) * plan.batch]
            state, *figures = advance(state, images, labels, chosen, np.int32(number))
            seen.append(figures)
            done, ends = number + 1, place + 1 == per_epoch
            if ends:
                accuracies[epoch] = accuracy(evaluate(predict, state, data.test), data.test)
            if ends or done % plan.save_every == 0 or done == total:
                loss, right = np.mean(jax.device_get(seen), 0)
                seconds = spent + time.perf_counter() - started
                record = Record(jax.device_get(state), np.int64(done), np.float64(seconds), accuracies.copy())
                if ends and accuracies[epoch] == np.nanmax(accuracies):
                    save(best, record)
                save(last, record)
                tell(done, float(loss), 100 * float(right), accuracies[epoch] if ends else None, seconds)
                seen = []
    return record


class progress:  # noqa: N801
    """A bar with loss and accuracy on a terminal, a line for each epoch elsewhere."""

    def __init__(self, name: str, total: int, done: int):
        self.name, self.bar, self.test = name, None, float("nan")
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                "{task.fields[loss]:.3f} loss, {task.fields[right]:.1f} % right, {task.fields[test]:.2f} % in the test"
            )
            self.bar = Progress("{task.description}", BarColumn(), TextColumn(columns), TimeRemainingColumn())
            nothing = float("nan")
            self.task = self.bar.add_task(name, total=total, completed=done, loss=nothing, right=nothing, test=nothing)

    def __enter__(self):
        if self.bar is not None:
            self.bar.start()
        return self.tell

    def tell(self, done: int, loss: float, right: float, test: float | None, seconds: float) -> None:
        self.test = self.test if test is None else test
        if self.bar is not None:
            self.bar.update(self.task, completed=done, loss=loss, right=right, test=self.test)
        elif test is not None:
            print(f"{self.name}: step {done}, loss {loss:.3f}, test {test:.2f} %, {seconds:.0f} s", flush=True)

    def __exit__(self, *error) -> None:
        if self.bar is not None:
            self.bar.stop()
