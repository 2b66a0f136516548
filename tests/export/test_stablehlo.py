"""Programs go out and come back."""

import jax
import jax.export
import networks
import numpy as np
import pytest

import jqz.export


@pytest.mark.parametrize("name", ["mobile", "branches"])
def test_round_trip(name):
    net, x = networks.case(name)
    file = jqz.export.stablehlo(net, x[:4])
    program = jax.export.deserialize(bytearray(file))
    leaves, again = jax.tree.leaves(net(x[:4])), jax.tree.leaves(program.call(x[:4]))
    assert len(leaves) == len(again)
    for ours, theirs in zip(leaves, again, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-7)


def test_the_program_multiplies_integers():
    net, x = networks.case("nnx")
    program = jax.export.deserialize(bytearray(jqz.export.stablehlo(net, x[:4]))).mlir_module()
    assert "xi8>, tensor<" in program
    assert "-> tensor<4x7xi32>" in program
