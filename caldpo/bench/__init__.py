"""Benchmark this project against TRL's ``DPOTrainer`` on one machine: ``python -m caldpo.benchmark``."""
