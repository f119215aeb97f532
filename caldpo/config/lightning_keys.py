"""What is refused of Lightning: arguments of its Trainer that are no keys of ``trainer.extra``, and some values.

Every argument of the Trainer is here or a field of :class:`caldpo.trainer_extra.TrainerExtra`, as a test asserts. No
heavy imports.
"""

from typing import Any, Literal

_OWN = "has a key of its own"
_EXACT = "would break that a run is exact"

# argument: reason, remedy
REFUSED: dict[str, tuple[str, str]] = {
    "accelerator": (_OWN, "set trainer.accelerator"),
    "accumulate_grad_batches": (_OWN, "set trainer.accumulate_grad_batches"),
    "barebones": ("switches metrics and checkpoints off, which a run is made of", "leave it out"),
    "benchmark": (f"{_EXACT}: kernels are then chosen by how fast they happened to be", "leave it out"),
    "callbacks": ("is a group", "add a callback as +callbacks.NAME._target_=MODULE.CLASS"),
    "check_val_every_n_epoch": (
        "follows from another key",
        "set trainer.val_check_interval=STEPS, or null for the end of each epoch",
    ),
    "default_root_dir": ("is the run's folder", "set hydra.run.dir=FOLDER"),
    "deterministic": (_OWN, "set trainer.deterministic"),
    "devices": (_OWN, "set trainer.devices"),
    "enable_autolog_hparams": ("is not needed: config.yaml and the trackers have the configuration", "leave it out"),
    "enable_checkpointing": ("follows from the callbacks", "set callbacks.checkpoint.every, or ~callbacks.checkpoint"),
    "enable_progress_bar": (_OWN, "set trainer.progress_bar"),
    "gradient_clip_algorithm": ("is always the norm, over all ranks", "set trainer.gradient_clip_val"),
    "gradient_clip_val": (_OWN, "set trainer.gradient_clip_val"),
    "inference_mode": ("changes nothing here: evaluations record no gradients", "leave it out"),
    "limit_predict_batches": ("limits a loop that is not run", "see python -m caldpo.generate"),
    "limit_test_batches": ("limits a loop that is not run", "set trainer.extra.limit_val_batches"),
    "limit_train_batches": (
        f"{_EXACT}: the order of an epoch and the schedule follow from its length",
        "set trainer.max_steps, or a part of an epoch: trainer.max_epochs=0.5",
    ),
    "log_every_n_steps": (
        "is always 1: each optimiser step has its row",
        "set trainer.metrics_sync_every, how many rows are fetched at once",
    ),
    "logger": ("is a group", "choose logger=wandb, or several: 'logger=[wandb,tensorboard]'"),
    "max_epochs": (_OWN, "set trainer.max_epochs"),
    "max_steps": (_OWN, "set trainer.max_steps"),
    "min_epochs": ("is counted in optimiser steps here", "set trainer.extra.min_steps"),
    "model_registry": ("uploads checkpoints to another service", "see python -m caldpo.export"),
    "num_nodes": (_OWN, "set trainer.num_nodes"),
    "num_sanity_val_steps": ("is always 0: the held-out pairs are evaluated before the first step", "leave it out"),
    "plugins": ("is set by precision, strategy and checkpoints", "leave it out"),
    "precision": (_OWN, "set trainer.precision"),
    "reload_dataloaders_every_n_epochs": (f"{_EXACT}: a loader knows where a resumed run goes on", "leave it out"),
    "strategy": (_OWN, "set trainer.strategy"),
    "sync_batchnorm": ("is of no use: language models have no batch norm", "leave it out"),
    "use_distributed_sampler": (f"{_EXACT}: the data has a sampler of its own, exact over ranks", "leave it out"),
    "val_check_interval": (_OWN, "set trainer.val_check_interval"),
}
# values that Lightning refuses although its annotations allow them, by class and argument
NARROWER: dict[str, dict[str, Any]] = {"EarlyStopping": {"mode": Literal["min", "max"]}}
PLACES = ("trainer", "trainer.extra")  # where they are looked for
