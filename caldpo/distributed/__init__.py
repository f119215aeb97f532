"""Strategies that shard policy, gradients and optimiser over ranks (FSDP2, ZeRO-2), and their checkpoints."""
