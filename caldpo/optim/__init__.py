"""Optimisers and learning-rate schedules, as small builders whose signatures are the yaml's schema: a file a family."""

from caldpo.optim.adamw import AdamW
from caldpo.optim.lr_schedule import Schedule
from caldpo.optim.param_groups import can_fuse, decay_groups
from caldpo.optim.rmsprop import RMSprop

__all__ = ["AdamW", "RMSprop", "Schedule", "can_fuse", "decay_groups"]
