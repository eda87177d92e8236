"""TensorFlow's checkpoint files: bytes in, objects out. No files, network, threads or clock.

From the bottom up: `coding`, `crc32c`, `ordered_code` and `snappy` know numbers and bytes; `block` and
`table` (and their builders) the sorted table; `dtypes`, `strings`, `shape_proto`, `slices` and `packed` the
tensors; `entry` what the index of a bundle says of them; `legacy_v1` the first format. `naming` is the
grammar of file names, `record` the text file ``checkpoint``, `protos`, `metagraph` and `object_graph` are the
messages that describe networks.
"""
