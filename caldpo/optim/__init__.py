"""Optimisers and learning-rate schedules, as small builders whose signatures are the yaml's schema: a file a family."""

from caldpo.optim.adamw import AdamW
from caldpo.optim.groups import can_fuse, decay_groups
from caldpo.optim.rmsprop import RMSprop
from caldpo.optim.schedule import Schedule

__all__ = ["AdamW", "RMSprop", "Schedule", "can_fuse", "decay_groups"]
