"""The rows of the table: what is done, by whom, and what ckptstore has to reach in it."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.contenders.many_ranks import STEPS
from benchmarks.contenders.registry import BUDGET_BYTES, CONTENDERS, MIB, OURS, RANKS_BUDGET_BYTES


@dataclass(frozen=True)
class Scenario:
    """What a group of rows has in common.

    Attributes
    ----------
    size : str
        ``large`` or ``small``: W or K; of many ranks ``ranks``, ``few`` or ``many``.
    store : str
        ``local``, ``http`` or ``https`` (MinIO).
    lifetime : str
        Of a contender's process: ``run``, ``operation``.
    saved_once : bool
        Whether all rounds restore what was saved before the first.
    all_rounds : bool
        Whether slow contenders take part in every round, because the rounds are short.
    discarded : int
        Rounds before those that count.
    """

    size: str
    store: str
    lifetime: str = "run"
    saved_once: bool = False
    all_rounds: bool = False
    discarded: int = 0


SCENARIOS = {
    "large-minio": Scenario("large", "http"),
    "large-local": Scenario("large", "local", lifetime="operation"),
    "small-local": Scenario("small", "local", lifetime="operation", all_rounds=True),
    "small-minio": Scenario("small", "http", all_rounds=True),
    "one": Scenario("large", "http", lifetime="operation", saved_once=True, all_rounds=True),
    "large-https": Scenario("large", "https"),
    # The first save makes the staging buffers.
    "async": Scenario("large", "local", all_rounds=True, discarded=1),
    # The first save of a layout agrees on who writes what.
    "ranks-minio": Scenario("ranks", "http", discarded=1),
    "ranks-local": Scenario("ranks", "local", discarded=1),
    # As above.
    "ranks-async": Scenario("ranks", "local", all_rounds=True, discarded=1),
    "ranks-few": Scenario("few", "http", all_rounds=True, discarded=1),
    "ranks-many": Scenario("many", "http", all_rounds=True, discarded=1),
}


@dataclass(frozen=True)
class Target:
    """What `who` has to reach.

    Attributes
    ----------
    at_most : float
        A ratio to the fastest of `of`, round by round; without `of`, the value itself.
    of : tuple of str
    who : str
    measure : str
        ``seconds``, ``cpu_per_gib`` or ``peak_bytes``.
    """

    at_most: float
    of: tuple[str, ...] = ()
    who: str = OURS
    measure: str = "seconds"


@dataclass(frozen=True)
class Row:
    """One operation of one scenario.

    Attributes
    ----------
    contenders : tuple of str
    reference : tuple of str
        The column of ratios is to the fastest of these.
    measure : str
        What the row is about.
    """

    title: str
    scenario: str
    operation: str
    contenders: tuple[str, ...]
    reference: tuple[str, ...]
    targets: tuple[Target, ...] = ()
    measure: str = "seconds"
    note: str = ""


RAW = ("sockets", "obstore", "boto3", "awscrt", "s3fs")
S3_PEERS = (
    *("safetensors-s3", "tensorflow-s3", "dcp-fsspec", "dcp-s3torch"),
    *("tensorstore-zarr3", "tensorstore-ocdbt"),
)
LOCAL_PEERS = (
    *("tensorflow", "safetensors", "torch-save", "dcp", "orbax"),
    *("tensorstore-zarr3", "tensorstore-ocdbt", "numpy"),
)
DURABLE = ("direct-ring", "buffered-sync")
_ROOM = BUDGET_BYTES + 64 * MIB
_BUDGETED = "ckptstore-budget"
_RANKS, _RANKS_STORE, _RANKS_BUDGETED = "ckptstore-ranks", "ckptstore-ranks-store", "ckptstore-ranks-budget"
_RANKS_DCP = "dcp-ranks-s3torch"
_MEMORY_TARGET = (Target(_ROOM, who=_BUDGETED, measure="peak_bytes"),)

ROWS: dict[str, Row] = {
    "minio-save": Row(
        "W, MinIO, save",
        "large-minio",
        "save",
        (OURS, *RAW, *S3_PEERS),
        RAW,
        (Target(1.25, RAW), Target(1.0, S3_PEERS), Target(0.5, measure="cpu_per_gib")),
    ),
    "minio-into": Row(
        "W, MinIO, restore into existing arrays",
        "large-minio",
        "restore_into",
        (OURS, *RAW, "dcp-fsspec", "dcp-s3torch"),
        RAW,
        (Target(1.25, RAW), Target(0.45, measure="cpu_per_gib")),
    ),
    "minio-new": Row(
        "W, MinIO, restore into new arrays",
        "large-minio",
        "restore_new",
        (OURS, "sockets", *S3_PEERS),
        S3_PEERS,
        (Target(1.0, S3_PEERS),),
    ),
    "one-cold": Row(
        "one 4 MiB tensor of W, MinIO, cold",
        "one",
        "read_one",
        (OURS, "sockets", "obstore", "safetensors-s3", "dcp-s3torch", "dcp-fsspec", "tensorstore-zarr3"),
        ("tensorstore-zarr3",),
        (Target(1.0, ("tensorstore-zarr3",)),),
        note="A new process, with a connected client; nothing of the checkpoint is cached.",
    ),
    "one-first": Row(
        "one 4 MiB tensor of W, MinIO, first contact",
        "one",
        "read_first",
        (OURS, "obstore", "safetensors-s3", "dcp-s3torch", "tensorstore-zarr3"),
        ("tensorstore-zarr3",),
        note="As above, including the set-up of the client, its first connection, and late imports.",
    ),
    "local-save": Row(
        "W, local, durable save",
        "large-local",
        "save",
        (OURS, *DURABLE, *LOCAL_PEERS, "tensorflow-synced"),
        DURABLE,
        (Target(1.1, DURABLE), Target(1.0, ("tensorflow",))),
    ),
    "local-save-cache": Row(
        'W, local, save with durability="cache"',
        "large-local",
        "save",
        ("ckptstore-cache", "buffered", "safetensors", "tensorflow"),
        ("buffered",),
        (Target(1.25, ("buffered",), who="ckptstore-cache"),),
    ),
    "local-mapped": Row(
        "W, local, restore, page cache warm, memory-mapped",
        "large-local",
        "restore_mapped",
        (OURS, "buffered", "tensorflow", "torch-save", "safetensors-mapped"),
        ("tensorflow",),
        (Target(1 / 5, ("tensorflow",)),),
        note="ckptstore and the limit verify the data; torch.load(mmap=True) and safetensors read none yet.",
    ),
    "local-mapped-cache": Row(
        "W, local, restore through a cache on the host that has all of it, memory-mapped",
        "large-local",
        "restore_mapped",
        ("ckptstore-host-cache", OURS),
        (OURS,),
        (Target(1.3, (OURS,), who="ckptstore-host-cache"),),
        note="Both verify all of it; the cache asks the storage whether the index is another one.",
    ),
    "local-new": Row(
        "W, local, restore, page cache warm, new arrays",
        "large-local",
        "restore_new",
        (OURS, "buffered", *LOCAL_PEERS),
        ("tensorflow",),
        (Target(1 / 2, ("tensorflow",)), Target(1.0, ("safetensors",))),
    ),
    "local-into": Row(
        "W, local, restore, page cache warm, existing arrays",
        "large-local",
        "restore_into",
        (OURS, "buffered", "dcp"),
        ("buffered",),
    ),
    "small-local-save": Row(
        "K, local, save",
        "small-local",
        "save",
        (OURS, "tensorflow", "safetensors", "torch-save", "numpy"),
        ("tensorflow",),
        (Target(1.0, ("tensorflow",)), Target(1.2, ("safetensors",))),
    ),
    "small-local-restore": Row(
        "K, local, restore, new arrays",
        "small-local",
        "restore_new",
        (OURS, "tensorflow", "safetensors", "torch-save", "numpy"),
        ("tensorflow",),
        (Target(1.0, ("tensorflow",)), Target(1.2, ("safetensors",))),
    ),
    "small-minio-save": Row(
        "K, MinIO, save",
        "small-minio",
        "save",
        (OURS, "safetensors-s3", "tensorflow-s3", "dcp-s3torch"),
        ("safetensors-s3", "tensorflow-s3", "dcp-s3torch"),
        (Target(1.0, ("safetensors-s3", "tensorflow-s3", "dcp-s3torch")),),
    ),
    "small-minio-restore": Row(
        "K, MinIO, restore, new arrays",
        "small-minio",
        "restore_new",
        (OURS, "safetensors-s3", "tensorflow-s3", "dcp-s3torch"),
        ("safetensors-s3", "tensorflow-s3", "dcp-s3torch"),
        (Target(1.0, ("safetensors-s3", "tensorflow-s3", "dcp-s3torch")),),
    ),
    "https-save": Row(
        "W, MinIO over HTTPS, save",
        "large-https",
        "save",
        (OURS, *RAW),
        RAW,
        note="A self-signed certificate; client and server share two cores.",
    ),
    "https-into": Row(
        "W, MinIO over HTTPS, restore into existing arrays",
        "large-https",
        "restore_into",
        (OURS, *RAW),
        RAW,
        (Target(1.1, RAW),),
    ),
    "async-blocked": Row(
        "W, async save, time that training is blocked",
        "async",
        "async_save",
        (OURS, "ckptstore-promise", "memcpy", "dcp", "orbax"),
        ("memcpy",),
        (Target(1.2, ("memcpy",)), Target(0.05, ("memcpy",), who="ckptstore-promise")),
        note="To a local disk. The save then finishes, unmeasured, and is checked.",
    ),
    "memory-local-save": Row(
        "W, local, save, peak memory beyond the arrays",
        "large-local",
        "save",
        (_BUDGETED, OURS, *LOCAL_PEERS),
        (),
        _MEMORY_TARGET,
        "peak_bytes",
    ),
    "memory-local-into": Row(
        "W, local, restore into existing arrays, peak memory beyond them",
        "large-local",
        "restore_into",
        (_BUDGETED, OURS, "dcp"),
        (),
        _MEMORY_TARGET,
        "peak_bytes",
    ),
    "memory-minio-save": Row(
        "W, MinIO, save, peak memory beyond the arrays",
        "large-minio",
        "save",
        (_BUDGETED, OURS, *RAW, *S3_PEERS),
        (),
        _MEMORY_TARGET,
        "peak_bytes",
    ),
    "memory-minio-into": Row(
        "W, MinIO, restore into existing arrays, peak memory beyond them",
        "large-minio",
        "restore_into",
        (_BUDGETED, OURS, *RAW, "dcp-fsspec", "dcp-s3torch"),
        (),
        _MEMORY_TARGET,
        "peak_bytes",
    ),
    "ranks-minio-save": Row(
        "4 ranks, MinIO, save",
        "ranks-minio",
        "save",
        (_RANKS, _RANKS_STORE, _RANKS_DCP, "dcp-ranks-fsspec", "zarr3-ranks", "ocdbt-ranks"),
        (_RANKS_DCP,),
        (Target(0.75, (_RANKS_DCP,), who=_RANKS), Target(1.0, ("ocdbt-ranks",), who=_RANKS)),
    ),
    "ranks-minio-into": Row(
        "4 ranks, MinIO, restore as saved",
        "ranks-minio",
        "restore_into",
        (_RANKS, _RANKS_DCP, "dcp-ranks-fsspec", "zarr3-ranks"),
        (_RANKS_DCP,),
        (Target(0.6, (_RANKS_DCP,), who=_RANKS), Target(1.0, ("zarr3-ranks",), who=_RANKS)),
    ),
    "ranks-minio-columns": Row(
        "4 ranks, MinIO, restore rows as columns",
        "ranks-minio",
        "restore_columns",
        (_RANKS, _RANKS_DCP, "dcp-ranks-fsspec", "zarr3-ranks"),
        (_RANKS_DCP,),
        (Target(0.6, (_RANKS_DCP,), who=_RANKS), Target(1.0, ("zarr3-ranks",), who=_RANKS)),
    ),
    "ranks-local-save": Row(
        "4 ranks, local, durable save",
        "ranks-local",
        "save",
        (_RANKS, _RANKS_STORE, "dcp-ranks", "orbax-ranks"),
        ("dcp-ranks",),
        (Target(0.6, ("dcp-ranks",), who=_RANKS), Target(0.3, ("orbax-ranks",), who=_RANKS)),
    ),
    "ranks-async-blocked": Row(
        "4 ranks, async save, time that training is blocked",
        "ranks-async",
        "async_save",
        (_RANKS, _RANKS_STORE, "memcpy-ranks"),
        ("memcpy-ranks",),
        (Target(1.2, ("memcpy-ranks",), who=_RANKS),),
        note="To a local disk. The save then finishes, unmeasured, and is checked.",
    ),
    "ranks-few": Row(
        "4 ranks, MinIO, save 16 small tensors",
        "ranks-few",
        "save",
        (_RANKS, _RANKS_STORE, _RANKS_DCP),
        (_RANKS_DCP,),
        (Target(0.06, who=_RANKS), Target(0.12, who=_RANKS_STORE)),
    ),
    "ranks-many-save": Row(
        "4 ranks, MinIO, save 2 000 tensors in 4 slices",
        "ranks-many",
        "save",
        (_RANKS, _RANKS_DCP),
        (_RANKS_DCP,),
        (Target(1.0, who=_RANKS),),
    ),
    "ranks-many-into": Row(
        "4 ranks, MinIO, restore 2 000 tensors of 4 slices",
        "ranks-many",
        "restore_into",
        (_RANKS, _RANKS_DCP),
        (_RANKS_DCP,),
        (Target(1.0, who=_RANKS),),
    ),
    "ranks-steps": Row(
        f"4 ranks, {STEPS:,} steps of Preemption",
        "ranks-few",
        "ask_steps",
        (_RANKS,),
        (),
        (Target(5e-6 * STEPS, who=_RANKS),),
    ),
    "ranks-memory-save": Row(
        "4 ranks, MinIO, save, peak memory beyond the pieces",
        "ranks-minio",
        "save",
        (_RANKS_BUDGETED, _RANKS, _RANKS_DCP, "dcp-ranks-fsspec", "zarr3-ranks", "ocdbt-ranks"),
        (),
        (Target(RANKS_BUDGET_BYTES + 64 * MIB, who=_RANKS_BUDGETED, measure="peak_bytes"),),
        "peak_bytes",
    ),
    "ranks-memory-columns": Row(
        "4 ranks, MinIO, restore rows as columns, peak memory beyond the pieces",
        "ranks-minio",
        "restore_columns",
        (_RANKS_BUDGETED, _RANKS, _RANKS_DCP, "dcp-ranks-fsspec", "zarr3-ranks"),
        (),
        (Target(RANKS_BUDGET_BYTES + 64 * MIB, who=_RANKS_BUDGETED, measure="peak_bytes"),),
        "peak_bytes",
    ),
    "import": Row(
        "import, above numpy",
        "import",
        "import",
        (),
        (),
    ),
}


def work_of(rows: dict[str, Row]) -> dict[str, dict[str, list[str]]]:
    """Return scenario → operation → contenders: what has to run so that all these rows have their figures.

    Nobody restores what was not saved, so whoever restores saves before; rows with the same scenario and
    operation share what is measured.
    """
    work: dict[str, dict[str, list[str]]] = {}
    for row in rows.values():
        operations = work.setdefault(row.scenario, {})
        if row.operation not in ("save", "async_save", "import"):
            _add(operations.setdefault("save", []), row.contenders)
        _add(operations.setdefault(row.operation, []), row.contenders)
    order = (
        "save",
        "restore_mapped",
        "restore_into",
        "restore_columns",
        "restore_new",
        "read_one",
        "read_first",
        "async_save",
        "ask_steps",
        "import",
    )
    return {
        scenario: {name: operations[name] for name in order if name in operations}
        for scenario, operations in work.items()
    }


def _add(known: list[str], more: tuple[str, ...]) -> None:
    known.extend(name for name in more if name not in known)


def unknown_names() -> set[str]:
    """Return contenders that a row names and the registry lacks."""
    named = {name for row in ROWS.values() for name in (*row.contenders, *row.reference)}
    return named - CONTENDERS.keys()
