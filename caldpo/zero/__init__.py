"""Training on DeepSpeed's ZeRO (the extra ``deepspeed``): gradients and optimiser divided over ranks."""
