"""What JAX's primitives compute, in the forms that XLA's CPU backend runs fast; one family a file.

From int8 codes come the same integers, from floats the same numbers to rounding. On CPU the form depends on
the shapes; on other backends it is the primitive itself. The forms are plain JAX, so they differentiate, batch
and shard.
"""
