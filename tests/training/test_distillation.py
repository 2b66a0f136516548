import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import teacher

import jqz
from jqz.training import ApprenticeWeights, apprentice_loss, distillation_loss

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.standard_normal((2, 5, 7)).astype(np.float32) * 2
LABELS = RNG.integers(0, 7, 5)


def _softmax(z):
    e = np.exp(z.astype(np.float64) - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation(temperature):
    p, q = _softmax(TEACHER / temperature), _softmax(STUDENT / temperature)
    got = distillation_loss(STUDENT, TEACHER, temperature)
    np.testing.assert_allclose(got, -(temperature**2) * (p * np.log(q)).sum(-1), rtol=1e-5)
    total = lambda s, t: distillation_loss(s, t, temperature).sum()  # noqa: E731
    of_student, of_teacher = jax.grad(total, (0, 1))(jnp.asarray(STUDENT), jnp.asarray(TEACHER))
    np.testing.assert_allclose(of_student, temperature * (q - p), rtol=1e-4, atol=1e-5)
    assert (of_teacher == 0).all()


def test_apprentice():
    weights = ApprenticeWeights(0.7, 0.2, 0.4)
    p, q, rows = _softmax(TEACHER), _softmax(STUDENT), np.arange(5)
    soft = -(p * np.log(q)).sum(-1)
    wanted = -0.7 * np.log(p[rows, LABELS]) - 0.2 * np.log(q[rows, LABELS]) + 0.4 * soft
    np.testing.assert_allclose(apprentice_loss(STUDENT, TEACHER, LABELS, weights=weights), wanted, rtol=1e-5)
    total = lambda s, t: apprentice_loss(s, t, jnp.asarray(LABELS), weights=weights).sum()  # noqa: E731
    of_student, of_teacher = jax.grad(total, (0, 1))(jnp.asarray(STUDENT), jnp.asarray(TEACHER))
    hot = np.eye(7)[LABELS]
    np.testing.assert_allclose(of_student, 0.2 * (q - hot) + 0.4 * (q - p), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_teacher, 0.7 * (p - hot), rtol=1e-4, atol=1e-5)


def _unlabelled(student, teacher, temperature=1.0):
    return apprentice_loss(student, teacher, jnp.zeros(5, int), temperature)


@pytest.mark.parametrize("loss", [distillation_loss, _unlabelled])
def test_refusals(loss):
    with pytest.raises(ValueError, match="wanted logits of the same classes"):
        loss(STUDENT, TEACHER[:, :3])
    for temperature in (0, -1.0):
        with pytest.raises(ValueError, match=r"got temperature=.*Use temperature=1\.0"):
            loss(STUDENT, TEACHER, temperature)


def test_a_network_teaches_its_rounded_copy_without_labels():
    params, x, y = teacher.task()
    policy = {"**/kernel": jqz.Symmetric(bits=2, granularity=jqz.PerAxis(-1), range=jqz.ranges.MeanMagnitude())}

    def loss(params, turn):
        return distillation_loss(teacher.model(jqz.fake_quantize(params, policy), x), y).mean()

    trained, _ = teacher.train(loss, params, optax.adam(optax.cosine_decay_schedule(0.01, 150)))
    floor = float(distillation_loss(y, y).mean())
    assert float(jax.jit(loss)(trained, 0)) - floor < 0.3 * (float(jax.jit(loss)(params, 0)) - floor)

    def agreement(params):
        return float((teacher.model(jqz.fake_quantize(params, policy), x).argmax(1) == y.argmax(1)).mean())

    assert agreement(trained) > agreement(params) + 0.05


@pytest.mark.parametrize(
    ("labels", "error"), [(LABELS[:, None], ValueError), (LABELS[:3], ValueError), (LABELS * 1.0, TypeError)]
)
def test_labels_are_one_integer_an_example(labels, error):
    logits = jnp.zeros((5, 7))
    with pytest.raises(error, match="apprentice_loss: got labels of"):
        apprentice_loss(logits, logits, jnp.asarray(labels))
