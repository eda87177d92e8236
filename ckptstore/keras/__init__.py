"""ckptstore for Keras 3, on any of its backends: weights and optimizer by the names of ``.weights.h5``."""

from ckptstore.keras.callback import ModelCheckpoint
from ckptstore.keras.saving import load, save

__all__ = ["ModelCheckpoint", "load", "save"]
