"""ckptstore for safetensors: to and from the files of Hugging Face, by ranges, on any storage."""

from ckptstore.safetensors.exporting import to_safetensors
from ckptstore.safetensors.importing import from_safetensors

__all__ = ["from_safetensors", "to_safetensors"]
