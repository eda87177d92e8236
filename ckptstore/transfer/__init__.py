"""Many bytes at once: threads, a memory budget, blocks of memory, parts and ranges, and progress.

Knows storages and bytes, but no tensors.
"""
