"""Policy and reference divided over ranks (PyTorch's FSDP2), and the checkpoints of such a run."""
