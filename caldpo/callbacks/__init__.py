"""What happens beside training: samples, true rewards, checkpoints."""
