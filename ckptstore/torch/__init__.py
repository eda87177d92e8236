"""ckptstore in torch.distributed jobs."""
