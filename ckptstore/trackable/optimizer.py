"""The state of an optimizer: the one kind of object besides containers and arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Optimizer"]


class Optimizer:
    """The state of an optimizer in the tree of a `Checkpoint`, with slot variables.

    It is saved as TensorFlow saves an optimizer: ``tf.train.Checkpoint`` restores the slots into one of the
    same kind.

    Parameters
    ----------
    values : mapping, optional
        The optimizer's own variables, name → array, number, or container: ``{"beta1_power": …, "beta2_power":
        …}``.
    slots : mapping, optional
        Slot name → variable → array: ``{"m": {"net/w": …}}``. A variable is named by its path in the tree
        from the root. Where a name on the way holds a ``/`` or ``.`` of its own, the path may also be spelled
        as in the keys of the checkpoint: ``net/a.Sb``.

    Attributes
    ----------
    values, slots : mapping
        The mappings that were given, not copies. They may be changed between saves.

    Examples
    --------
    >>> import numpy as np
    >>> from ckptstore import Checkpoint
    >>> net = {"w": np.ones(2)}
    >>> adam = Optimizer(values={"beta1_power": 0.9}, slots={"m": {"net/w": np.zeros(2)}})
    >>> Checkpoint(net=net, optimizer=adam).write("memory://docs/adam")
    'memory://docs/adam'
    """

    def __init__(
        self, values: Mapping[str, Any] | None = None, slots: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self.values: Mapping[str, Any] = {} if values is None else values
        self.slots: Mapping[str, Mapping[str, Any]] = {} if slots is None else slots

    def __repr__(self) -> str:
        return f"Optimizer(values={list(self.values)}, slots={list(self.slots)})"
