"""Everybody who takes part: where the code is, which environment it runs in, what its save promises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MIB = 2**20
BUDGET_BYTES = 100 * MIB  # a tenth of W

_HERE = "benchmarks.contenders"


@dataclass(frozen=True)
class Traits:
    """What a save gives on a local disk; `None`: the question does not arise.

    Attributes
    ----------
    synced : bool or None
        Whether the files with its data are synced when the call returns.
    checksummed : bool
        Whether a checksum of all data is stored, and tested by a restore.
    atomic : bool
        Whether a reader sees all of the old checkpoint or all of the new one, whenever the writer dies, on an
        overwrite too.
    """

    synced: bool | None = False
    checksummed: bool = False
    atomic: bool = False


@dataclass(frozen=True)
class Spec:
    """One contender.

    Attributes
    ----------
    code : str
        ``module:class``.
    environment : str
        Name of the virtual environment, below the directory of environments.
    kind : str
        ``ours``; ``limit``: moves the same bytes and nothing else; ``peer``: another checkpoint library.
    slow : bool
        Takes part in fewer rounds.
    quick : bool
        Takes part in the small run too.
    ranks : int
        Processes that it consists of, each with a part of the set.
    keeps : bool
        Saves step after step in one place, and deletes old ones itself.
    """

    label: str
    code: str
    environment: str
    kind: str
    traits: Traits = Traits()
    options: dict[str, Any] = field(default_factory=dict)
    slow: bool = False
    quick: bool = True
    ranks: int = 1
    keeps: bool = False


_OURS = Traits(synced=True, checksummed=True, atomic=True)
_RAW = Traits(synced=None)
_OBJECT = Traits(synced=None, atomic=True)
_TORN = Traits(synced=None)  # several objects, and no commit

OURS = "ckptstore"
RANKS = 4
RANKS_BUDGET_BYTES = 16 * MIB  # a quarter of the part of a rank

CONTENDERS: dict[str, Spec] = {
    OURS: Spec("ckptstore", f"{_HERE}.ours:Ours", "bench", "ours", _OURS),
    "ckptstore-cache": Spec(
        "ckptstore, durability=cache",
        f"{_HERE}.ours:Ours",
        "bench",
        "ours",
        Traits(synced=False, checksummed=True, atomic=True),
        {"durability": "cache"},
    ),
    "ckptstore-budget": Spec(
        f"ckptstore, budget {BUDGET_BYTES // MIB} MiB",
        f"{_HERE}.ours:Ours",
        "bench",
        "ours",
        _OURS,
        {"memory_budget": BUDGET_BYTES},
        slow=True,
    ),
    "ckptstore-promise": Spec(
        "ckptstore, snapshot=False", f"{_HERE}.ours:Ours", "bench", "ours", _OURS, {"promise": True}
    ),
    "ckptstore-host-cache": Spec(
        "ckptstore, Cache on the host",
        f"{_HERE}.ours:Ours",
        "bench",
        "ours",
        _OURS,
        {"cache": True},
    ),
    # limits
    "direct-ring": Spec(
        "limit: direct I/O, CRC32C",
        f"{_HERE}.limits:Direct",
        "bench",
        "limit",
        Traits(synced=True, checksummed=True),
    ),
    "buffered-sync": Spec(
        "limit: buffered, CRC32C, fsync",
        f"{_HERE}.limits:Buffered",
        "bench",
        "limit",
        Traits(synced=True, checksummed=True),
        {"sync": True},
    ),
    "buffered": Spec(
        "limit: buffered, CRC32C",
        f"{_HERE}.limits:Buffered",
        "bench",
        "limit",
        Traits(checksummed=True),
    ),
    "memcpy": Spec("limit: one memcpy", f"{_HERE}.limits:Memcpy", "bench", "limit", Traits(synced=None)),
    # raw clients
    "sockets": Spec("plain sockets", f"{_HERE}.sockets:Sockets", "bench", "limit", _RAW),
    "obstore": Spec("obstore", f"{_HERE}.obstore_client:Obstore", "bench-clients", "limit", _RAW),
    "boto3": Spec("boto3", f"{_HERE}.boto:Boto3", "bench-clients", "limit", _RAW, slow=True),
    "awscrt": Spec("awscrt", f"{_HERE}.awscrt_client:Awscrt", "bench-clients", "limit", _RAW, quick=False),
    "s3fs": Spec("s3fs, tuned", f"{_HERE}.s3fs_client:S3fs", "bench", "limit", _RAW, slow=True, quick=False),
    # peers
    "tensorflow": Spec(
        "TensorFlow",
        f"{_HERE}.tensorflow_ops:Local",
        "bench-tensorflow",
        "peer",
        Traits(checksummed=True),
    ),
    "tensorflow-synced": Spec(
        "TensorFlow, then synced",
        f"{_HERE}.tensorflow_ops:Local",
        "bench-tensorflow",
        "peer",
        Traits(synced=True, checksummed=True),
        {"sync": True},
        slow=True,
        quick=False,
    ),
    "tensorflow-s3": Spec(
        "TensorFlow + boto3",
        f"{_HERE}.tensorflow_ops:OnS3",
        "bench-tensorflow",
        "peer",
        Traits(synced=None, checksummed=True),
        slow=True,
    ),
    "safetensors": Spec("safetensors", f"{_HERE}.safetensors_files:Local", "bench-clients", "peer", Traits()),
    "safetensors-s3": Spec(
        "safetensors + boto3", f"{_HERE}.safetensors_files:OnS3", "bench-clients", "peer", _OBJECT, slow=True
    ),
    "safetensors-mapped": Spec(
        "safetensors (torch)",
        f"{_HERE}.torch_files:Safetensors",
        "bench-torch",
        "peer",
        Traits(),
        slow=True,
        quick=False,
    ),
    "numpy": Spec(
        "numpy npz",
        f"{_HERE}.numpy_files:Npz",
        "bench",
        "peer",
        Traits(checksummed=True),
        slow=True,
        quick=False,
    ),
    "torch-save": Spec(
        "torch.save", f"{_HERE}.torch_files:TorchSave", "bench-torch", "peer", slow=True, quick=False
    ),
    "dcp": Spec(
        "torch DCP",
        f"{_HERE}.torch_dcp:Local",
        "bench-torch",
        "peer",
        Traits(synced=True),
        slow=True,
        quick=False,
    ),
    "dcp-fsspec": Spec(
        "torch DCP, fsspec", f"{_HERE}.torch_dcp:Fsspec", "bench-torch", "peer", _TORN, slow=True, quick=False
    ),
    "dcp-s3torch": Spec(
        "torch DCP, s3torchconnector",
        f"{_HERE}.torch_dcp:S3Torch",
        "bench-torch",
        "peer",
        _TORN,
        slow=True,
        quick=False,
    ),
    "orbax": Spec(
        "Orbax",
        f"{_HERE}.orbax_files:Orbax",
        "bench-jax",
        "peer",
        Traits(synced=True, atomic=True),
        slow=True,
        quick=False,
    ),
    "tensorstore-zarr3": Spec(
        "TensorStore zarr3",
        f"{_HERE}.tensorstore_arrays:TensorStore",
        "bench-jax",
        "peer",
        Traits(synced=True),
        slow=True,
        quick=False,
    ),
    "tensorstore-ocdbt": Spec(
        "TensorStore zarr3 in ocdbt",
        f"{_HERE}.tensorstore_arrays:TensorStore",
        "bench-jax",
        "peer",
        Traits(synced=True, atomic=True),
        {"ocdbt": True},
        slow=True,
        quick=False,
    ),
    # four ranks
    "ckptstore-ranks": Spec(
        "ckptstore",
        f"{_HERE}.many_ranks:Ours",
        "frameworks",
        "ours",
        _OURS,
        {"engine": "torch"},
        ranks=RANKS,
        keeps=True,
    ),
    "ckptstore-ranks-store": Spec(
        "ckptstore, through the store",
        f"{_HERE}.many_ranks:Ours",
        "bench",
        "ours",
        _OURS,
        {"engine": "store"},
        ranks=RANKS,
        keeps=True,
    ),
    "ckptstore-ranks-budget": Spec(
        f"ckptstore, budget {RANKS_BUDGET_BYTES // MIB} MiB",
        f"{_HERE}.many_ranks:Ours",
        "frameworks",
        "ours",
        _OURS,
        {"engine": "torch", "memory_budget": RANKS_BUDGET_BYTES},
        slow=True,
        ranks=RANKS,
        keeps=True,
    ),
    "memcpy-ranks": Spec(
        "limit: one memcpy of each part",
        f"{_HERE}.many_ranks:Memcpy",
        "bench",
        "limit",
        Traits(synced=None),
        ranks=RANKS,
    ),
    "dcp-ranks": Spec(
        "torch DCP",
        f"{_HERE}.many_ranks:DcpLocal",
        "bench-torch",
        "peer",
        Traits(synced=True),
        quick=False,
        ranks=RANKS,
    ),
    "dcp-ranks-fsspec": Spec(
        "torch DCP, fsspec",
        f"{_HERE}.many_ranks:DcpFsspec",
        "bench-torch",
        "peer",
        _TORN,
        slow=True,
        quick=False,
        ranks=RANKS,
    ),
    "dcp-ranks-s3torch": Spec(
        "torch DCP, s3torchconnector",
        f"{_HERE}.many_ranks:DcpS3Torch",
        "bench-torch",
        "peer",
        _TORN,
        quick=False,
        ranks=RANKS,
    ),
    "orbax-ranks": Spec(
        "Orbax v1",
        f"{_HERE}.many_ranks:OrbaxV1",
        "bench-jax",
        "peer",
        Traits(synced=True, atomic=True),
        quick=False,
        ranks=RANKS,
    ),
    "zarr3-ranks": Spec(
        "TensorStore zarr3",
        f"{_HERE}.many_ranks:TensorStoreRanks",
        "bench-jax",
        "peer",
        Traits(synced=True),
        quick=False,
        ranks=RANKS,
    ),
    "ocdbt-ranks": Spec(
        "TensorStore ocdbt, not merged",
        f"{_HERE}.many_ranks:TensorStoreRanks",
        "bench-jax",
        "peer",
        Traits(synced=True),
        {"ocdbt": True},
        quick=False,
        ranks=RANKS,
    ),
}
