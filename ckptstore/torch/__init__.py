"""ckptstore for torch: state dicts of a host that serves, and ranks of torch.distributed."""

from ckptstore.torch.state_dict import read_state_dict

__all__ = ["read_state_dict"]
