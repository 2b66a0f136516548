"""Losses that let a float network teach a quantized one: Apprentice."""

import typing

import jax
import jax.numpy as jnp


def distillation_loss(student: jax.Array, teacher: jax.Array, temperature: float = 1.0) -> jax.Array:
    """temperature**2 times the cross entropy of the student's softened probabilities under the teacher's.

    -T**2 sum(softmax(teacher / T) log softmax(student / T)), along the last axis; T**2 keeps gradients of one size.
    Its gradient is T (softmax(student / T) - softmax(teacher / T)) for the student, none for the teacher. It needs no
    labels, so a network can teach its own rounded copy on any inputs. Low-bit students learn best at 1 or 2.

    Args:
      student: logits (..., classes).
      teacher: logits of the same shape.
      temperature: positive.

    Returns:
      A loss for each example, (...).

    Raises:
      ValueError: a temperature that is not positive, or shapes that differ.

    >>> import jax, jax.numpy as jnp
    >>> from jqz.training import distillation_loss
    >>> teacher = jnp.array([[2.0, 0.0, -2.0]])
    >>> grad = jax.grad(lambda student: distillation_loss(student, teacher).sum())
    >>> bool(jnp.allclose(grad(teacher), 0, atol=1e-6)), bool(jnp.allclose(grad(-teacher), 0, atol=1e-6))
    (True, False)

    References: arXiv:1503.02531; arXiv:1711.05852.
    """
    _check("distillation_loss", student, teacher, temperature)
    wanted = jax.nn.softmax(jax.lax.stop_gradient(teacher) / temperature)
    return -(temperature**2) * jnp.sum(wanted * jax.nn.log_softmax(student / temperature), axis=-1)


class ApprenticeWeights(typing.NamedTuple):
    """How much each part of ``apprentice_loss`` counts.

    Attributes:
      teacher: the teacher's own cross entropy; it has no gradient where the teacher is fixed.
      student: the student's.
      distillation: what the student learns from the teacher.
    """

    teacher: float = 1.0
    student: float = 0.5
    distillation: float = 0.5


def apprentice_loss(
    student: jax.Array,
    teacher: jax.Array,
    labels: jax.Array,
    temperature: float = 1.0,
    weights: ApprenticeWeights = ApprenticeWeights(),
) -> jax.Array:
    """Cross entropies of teacher and student against the labels, and ``distillation_loss`` between them.

    weights.teacher * H(labels, teacher) + weights.student * H(labels, student) + weights.distillation *
    distillation_loss. Three schemes of the paper, by what is trained: teacher and student together (A); the student
    from random weights beside a fixed teacher (B); the student from the teacher's own weights, at a low learning rate
    (C), which costs least and is the usual choice.

    Args:
      student: logits (..., classes) of the quantized network.
      teacher: logits of the float network, which may be larger.
      labels: integer classes (...).
      temperature: as for ``distillation_loss``.
      weights: of the three parts.

    Returns:
      A loss for each example, (...).

    Raises:
      TypeError: labels are no integers.
      ValueError: as ``distillation_loss``, or labels of another shape.

    >>> import jax.numpy as jnp
    >>> from jqz.training import apprentice_loss
    >>> logits = jnp.zeros((1, 4))
    >>> round(float(apprentice_loss(logits, logits, jnp.array([2]))[0]), 4)  # 2 log(4)
    2.7726

    References: arXiv:1711.05852, equation 1.
    """
    _check("apprentice_loss", student, teacher, temperature)
    if labels.shape != student.shape[:-1]:
        raise ValueError(
            f"apprentice_loss: got labels of shape {labels.shape} for logits of shape {student.shape}, wanted "
            f"{student.shape[:-1]}. Use integer classes, labels.argmax(-1) where they are one-hot."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"apprentice_loss: got labels of dtype {labels.dtype}, wanted integers. Use labels.astype(int)."
        )

    def cross_entropy(logits: jax.Array) -> jax.Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]

    return (
        weights.teacher * cross_entropy(teacher)
        + weights.student * cross_entropy(student)
        + weights.distillation * distillation_loss(student, teacher, temperature)
    )


def _check(who: str, student: jax.Array, teacher: jax.Array, temperature: typing.Any) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{who}: got a student of shape {student.shape} and a teacher of shape {teacher.shape}, wanted logits of "
            "the same classes. Use the logits of both, in one order of classes."
        )
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"{who}: got temperature={temperature!r}, wanted a positive number. Use temperature=1.0.")
