"""Optimisers and learning-rate schedules: builders whose signatures are the schema of their yaml, one file a family."""

from caldpo.optim.adamw import AdamW
from caldpo.optim.lr_schedule import Schedule
from caldpo.optim.optimizer_base import can_fuse, decay_groups
from caldpo.optim.rmsprop import RMSprop

__all__ = ["AdamW", "RMSprop", "Schedule", "can_fuse", "decay_groups"]
