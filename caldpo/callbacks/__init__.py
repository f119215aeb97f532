"""What happens during training: samples, true rewards, checkpoints."""
