"""Training methods: optax transformations, schedules and projections over explicit state.

Each is pure: its state is a pytree of arrays that jit, scan and checkpoints carry. They compose by ``optax.chain`` or
wrap an optimizer, and take any scheme by a ``jqz.Policy``: leaves to which it gives no scheme are left alone.
``import jqz.training`` imports them; ``import jqz`` alone does not, since they need optax.
"""

__all__: list[str] = []
