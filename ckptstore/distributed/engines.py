"""Which coordinator a job has: that of the engine it runs on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ckptstore.distributed import mpi, ray, through_store
from ckptstore.distributed.coordinator import Coordinator, SingleCoordinator
from ckptstore.errors import UsageError
from ckptstore.storage.url import UrlLike
from ckptstore.suggest import did_you_mean

__all__ = ["coordinator"]

_ENGINES = ("auto", "torch", "jax", "ray", "mpi", "store", "single")


def coordinator(
    engine: str = "auto",
    *,
    rank: int | None = None,
    size: int | None = None,
    url: UrlLike | None = None,
    attempt: str | int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    **engine_options: Any,
) -> Coordinator:
    """Return what the ranks of this job talk through; call it once on every rank.

    It returns when all ranks have called it. Pass it to `Saver`, `CheckpointManager`, `latest_checkpoint` and
    `Preemption`, and close it at the end, on every rank.

    Parameters
    ----------
    engine : str
        ``"torch"``, ``"jax"``, ``"ray"``, ``"mpi"``; ``"store"``: objects below `url`, where none of these
        runs; ``"single"``: one process. ``"auto"``: torch.distributed if it is initialised, JAX if it runs
        several processes, Ray Train in one of its workers, MPI if mpi4py is imported and there are several
        processes; otherwise one process.
    rank, size : int, optional
        By default the engine says. ``"store"`` reads what the launcher has set: torchrun, SLURM, Open MPI,
        PMI, or an indexed job of Kubernetes.
    url : str or os.PathLike, optional
        For ``"store"``: a directory that all ranks can write, for example that of the checkpoints.
    attempt : str or int, optional
        For ``"store"``: names this start of the job, the same on all ranks. By default the launcher says.
    storage_options : mapping, optional
        For ``"store"``: options of the storage of `url`.
    **engine_options
        ``timeout_s``: how long the ranks wait for each other here, 300 s by default. ``store`` (torch): a
        store to use instead of that of the default process group. ``heartbeat_timeout_s`` (JAX): as given to
        ``jax.distributed.initialize``. ``comm`` (MPI): a communicator. ``name`` (Ray): of the job.

    Raises
    ------
    UsageError
        If an argument is wrong, the engine does not run here, or the ranks do not belong together.
    UnsupportedError
        If the package of the engine is not installed.
    RanksMissingError
        If not all ranks came in time.
    CoordinatorLostError
        If the engine's mailbox is gone.

    Threads
    -------
    Any; with ``"mpi"``, the same on all ranks, because the communicator is duplicated.
    """
    if engine not in _ENGINES:
        raise UsageError(
            f"engine {engine!r} is not known",
            expected=", ".join(_ENGINES),
            hint=did_you_mean(engine, _ENGINES) if isinstance(engine, str) else None,
        )
    if engine == "auto":
        engine = _running_engine()
    given = {
        name: value
        for name, value in (
            *(("rank", rank), ("size", size), ("url", url)),
            *(("attempt", attempt), ("storage_options", storage_options)),
            *engine_options.items(),
        )
        if value is not None
    }
    open_one, known = _opener(engine)
    unknown = sorted(given.keys() - known)
    if unknown:
        raise UsageError(
            f"engine {engine!r} takes no {', '.join(unknown)}",
            expected=", ".join(sorted(known)) or "no options",
        )
    return open_one(**given)


def _running_engine() -> str:
    # What the program has not loaded does not run, and is not loaded for the question.
    if "torch.distributed" in sys.modules and _adapter("torch").is_running():
        return "torch"
    if "jax" in sys.modules and _adapter("jax").is_running():
        return "jax"
    if ray.is_running():
        return "ray"
    return "mpi" if mpi.is_running() else "single"


def _opener(engine: str) -> tuple[Callable[..., Coordinator], set[str]]:
    """Return what opens the coordinator of `engine`, and the options that it takes."""
    match engine:
        case "torch":
            return _adapter("torch").open_coordinator, {"rank", "size", "store", "timeout_s"}
        case "jax":
            return _adapter("jax").open_coordinator, {"rank", "size", "heartbeat_timeout_s", "timeout_s"}
        case "ray":
            return ray.open_coordinator, {"rank", "size", "name", "timeout_s"}
        case "mpi":
            return mpi.open_coordinator, {"comm", "timeout_s"}
        case "store":
            known = {"rank", "size", "url", "attempt", "storage_options", "timeout_s"}
            return through_store.open_coordinator, known
        case _:
            return SingleCoordinator, set()


def _adapter(engine: str) -> Any:
    # They stand above this room, with the other adapters of their frameworks.
    if engine == "torch":
        return importlib.import_module("ckptstore.torch.coordinator")
    return importlib.import_module("ckptstore.jax.coordinator")
