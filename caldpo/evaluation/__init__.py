"""Whether a policy got better: suites of measures on a run's folder, a sweep's, or any Hugging Face model."""
