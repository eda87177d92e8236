"""ckptstore in JAX programs of several processes."""
