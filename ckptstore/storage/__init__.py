"""Named bytes at URLs, with a promise about atomicity that each backend states and the contract suite proves.

`base` is the seam; `registry.locate` leads from a URL to it. Nothing in this room knows of tensors.
"""
