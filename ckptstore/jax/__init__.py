"""ckptstore for JAX: trees of arrays of any sharding, in programs of one process and of several."""

from ckptstore.jax.restoring import restore
from ckptstore.jax.saving import pieces, save, save_async

__all__ = ["pieces", "restore", "save", "save_async"]
