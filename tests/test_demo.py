"""The demo's arithmetic against plain loops, and one small run of the command from end to end."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jqz
from jqz import cli, demo

WEIGHTS = 3 * 3 * 16, 6 * 6 * 16 * 16  # of the two kernels


def test_rows_cover_the_catalogue_and_every_width():
    rows = demo.rows(demo.Settings())
    assert len({row.label for row in rows}) == len({row.scheme for row in rows}) == len(rows)
    assert {type(row.scheme) for row in rows[:-1]} == set(jqz.schemes.CATALOGUE)
    assert rows[-1].scheme == jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4)
    widths = {}
    for row in rows[:-1]:
        widths.setdefault(type(row.scheme), []).append(row.scheme.bits)
    every = [8, 7, 6, 5, 4, 3, 2]
    for cls in (jqz.Symmetric, jqz.Asymmetric, jqz.FixedPoint, jqz.PowerOfTwo, jqz.Codebook, jqz.NormalFloat):
        assert widths[cls] == every
    assert widths[jqz.AdditivePowerOfTwo] == [6, 5, 4, 3, 2]
    assert widths[jqz.Float] == [8, 8, 6, 6, 4]
    assert widths[jqz.BlockFloat] == [8, 8, 6, 4, 4]
    assert widths[jqz.Binary] == [1]
    assert widths[jqz.Ternary] == [2]


def test_rows_may_be_chosen():
    rows = demo.rows(demo.Settings(only=("Binary", "Symmetric"), widths=(8, 2), per_channel=True))
    channel = jqz.PerAxis(-1)
    assert [row.scheme for row in rows] == [
        jqz.Symmetric(bits=8, granularity=channel),
        jqz.Symmetric(bits=2, granularity=channel),
        jqz.Binary(channel),
        jqz.Symmetric(bits=8, granularity=channel) >> jqz.PowerOfTwo(bits=4),
    ]
    with pytest.raises(ValueError, match="got Symetric, wanted some of Symmetric, "):
        demo.rows(demo.Settings(only=("Symetric",)))


def test_digits_are_split():
    data, other = demo.digits(0), demo.digits(1)
    assert data.images.shape == (1348, 8, 8, 1)
    assert data.test_images.shape == (449, 8, 8, 1)
    assert 0 == data.images.min() < data.images.max() == 1
    together = np.concatenate([data.images, data.test_images]).reshape(1797, -1)
    assert len(np.unique(together, axis=0)) == len(np.unique(demo.load_digits().data, axis=0))
    assert not np.array_equal(data.labels, other.labels)


def test_training_is_straight_through_training():
    """One program with branches, slopes beside values and a traced width, against a loop over jax.grad."""
    settings = demo.Settings(only=("Symmetric", "Binary"), widths=(3,), float_epochs=1, tuning_epochs=1, batch=256)
    rows = demo.rows(settings)
    data, network = demo.digits(0), demo.Network()
    params = network.init(jax.random.key(0), data.images[:1])
    train = demo.Training(settings, rows, data, network, params)
    steps, rate = 1348 // 256, 1e-3
    for row in rows[:2]:
        policy = jqz.Policy({"**/kernel": row.scheme})
        _, rounded = train(params, row.scheme, 0, rate)
        expected = jqz.dequantize(jqz.quantize(params, policy))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), rounded, expected)

        batches = train._arguments(params, row.scheme, steps, rate)[3]
        optimizer = optax.adam(lambda step: rate * (1 - step / steps))

        @jax.jit
        def step(params, state, batch, policy=policy, optimizer=optimizer):
            def loss(params):
                logits = network.apply(jqz.fake_quantize(params, policy), data.images[batch])
                return optax.softmax_cross_entropy_with_integer_labels(logits, data.labels[batch]).mean()

            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(jax.grad(loss)(params), state)
                return optax.apply_updates(params, updates), state

        loop, state = params, optimizer.init(params)
        for batch in batches[:steps]:
            loop, state = step(loop, state, batch)
        trained, _ = train(params, row.scheme, 1, rate)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), trained, loop)
        moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), trained, params)
        assert min(jax.tree.leaves(moved)) > 1e-3


def test_a_row_tells_whether_its_products_are_integers():
    data, network = demo.digits(0), demo.Network()
    params, images = network.init(jax.random.key(0), data.images[:1]), data.test_images[:8]
    classes = np.asarray(network.apply(params, images)).argmax(-1)
    for scheme, integer in ((jqz.Symmetric(bits=8), True), (jqz.NormalFloat(bits=8), False)):
        coded = demo._coded(scheme, network, params, images, classes)
        assert coded.integer == integer
        assert coded.agreement >= 7 / 8
        assert coded.sqnr_db > 30


def test_command_measures(capsys):
    assert cli.main(["demo", "--quick", "--only", "Ternary", "--json"]) == 0
    floating, ternary, chain = rows = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in rows] == ["float32", "Ternary()", "Symmetric(8) >> PowerOfTwo(4)"]
    assert eval(chain["scheme"], vars(jqz)) == jqz.Symmetric(bits=8) >> jqz.PowerOfTwo(bits=4)
    assert [row["packed_bytes"] for row in rows] == [
        4 * sum(WEIGHTS),
        sum(WEIGHTS) // 4 + 2 * 8,  # a scale and a threshold for each kernel
        sum(WEIGHTS) // 2 + 2 * 8,  # two scales for each kernel
    ]
    for row in rows:
        assert row["bits_per_weight"] == pytest.approx(8 * row["packed_bytes"] / sum(WEIGHTS))
        assert 0 < row["gzip_bytes"] < row["packed_bytes"]
        for field in ("accuracy", "trained_accuracy"):
            assert row[field] * 449 == pytest.approx(round(row[field] * 449))
    assert floating["accuracy"] > 0.9
    assert ternary["trained_accuracy"] > floating["accuracy"] - 0.1
    assert chain["accuracy"] > floating["accuracy"] - 0.05
    assert chain["agreement"] > 0.95
    assert 14.5 > chain["sqnr_db"] > 12 > ternary["sqnr_db"] > 3
    assert [row["integer"] for row in rows] == [False, True, True]
    assert [row["agreement"] is None for row in rows] == [True, False, False]
