"""Policy and reference sharded over ranks (PyTorch's FSDP2), and the checkpoints of such a run."""
