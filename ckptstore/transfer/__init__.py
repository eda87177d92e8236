"""Many bytes at once: threads, a memory budget, staging memory, parts and ranges, and the news of it.

Knows storages and bytes, nothing of tensors.
"""
