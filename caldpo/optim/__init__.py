"""Optimisers and learning-rate schedules: builders whose signatures are the schema of their yaml."""

from caldpo.optim.optimizer_base import Schedule, can_fuse, decay_groups
from caldpo.optim.torch_optimizers import AdamW, RMSprop

__all__ = ["AdamW", "RMSprop", "Schedule", "can_fuse", "decay_groups"]
