"""ckptstore for torch: state dicts of one process or of many ranks, saved, loaded and served."""

from ckptstore.torch.loads import load
from ckptstore.torch.saves import pieces, save, save_async
from ckptstore.torch.state_dict import read_state_dict

__all__ = ["load", "pieces", "read_state_dict", "save", "save_async"]
