"""The runs of a study: an arm is a row (a loss, or what stands beside the losses) under a condition."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig

from caldpo.config.conf_dir import known_losses
from caldpo.config.preflight import composed
from caldpo.data.raw_row import RewardSource
from caldpo.errors import CaldpoError
from caldpo.losses.search_space import Range, SearchSpace
from caldpo.run_settings import SETTINGS, find_config_problems
from caldpo.studies.study_settings import FRESH, StudySettings
from caldpo.studies.trial_points import Point, as_overrides, proposed_point, quasi_random_points
from caldpo.utils.digests import json_digest

LR = "optim.lr"


@dataclass(frozen=True)
class StudyRun:
    """One training run, told from others by its overrides alone."""

    overrides: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Name of its record."""
        return json_digest(sorted(self.overrides))[:16]


@dataclass(frozen=True)
class Arm:
    """A row under a condition."""

    condition: str
    row: str
    overrides: tuple[str, ...]  # of both
    space: SearchSpace  # by configuration key; empty: not tuned
    default: Point  # the yaml's own values of the searched keys
    is_loss: bool
    reads_scores: bool = False  # its loss is trained on the data's scores, which the others do not see

    @property
    def name(self) -> tuple[str, str]:
        return self.condition, self.row


@dataclass(frozen=True)
class LeftOut:
    """A loss of ``losses=all`` that a condition cannot have, and why."""

    condition: str
    row: str
    reason: str


class StudyPlan:
    """Makes the arms and runs of the settings."""

    def __init__(self, settings: StudySettings) -> None:
        self.settings = settings

    def arms(self, only: Container[tuple[str, str]] | None = None) -> tuple[list[Arm], list[LeftOut]]:
        """Compose each row under each condition, or those that ``only`` has.

        Raises:
            CaldpoError: a named row cannot be composed there, or the condition's true reward is not known.
        """
        settings, arms, left_out = self.settings, [], []
        every = settings.losses == "all"
        losses = known_losses() if every else list(settings.losses)
        for condition in settings.conditions:
            for loss in losses:
                if only is not None and (condition, loss) not in only:
                    continue
                try:
                    arms.append(self._arm(condition, loss, self._loss(loss), tuned=True, is_loss=True))
                except CaldpoError as error:
                    if not every or error.key == "conditions":
                        raise
                    left_out.append(LeftOut(condition, loss, error.message))
            for name in settings.beside:
                if name not in losses and (only is None or (condition, name) in only):
                    row = settings.beside_overrides[name]
                    arms.append(self._arm(condition, name, row["overrides"], tuned=bool(row["tuned"]), is_loss=False))
        return arms, left_out

    def trial(self, arm: Arm, number: int, earlier: Sequence[tuple[Point, float]]) -> tuple[Point, StudyRun]:
        """Make trial ``number`` of an arm: point and run. ``earlier`` trials with their scores matter to TPE alone."""
        settings = self.settings
        if number == 0:
            point = arm.default
        elif self.needs_earlier(number):
            point = proposed_point(arm.space, earlier, seed=settings.seed + number)
        else:
            point = quasi_random_points(arm.space, number, settings.seed)[-1]
        return point, self._run(arm, point, settings.trial_overrides, settings.seed)

    def needs_earlier(self, number: int) -> bool:
        """Whether a trial can only be made once the earlier ones have ended."""
        return self.settings.sampler == "tpe" and number > self.settings.trials // 2

    def final_runs(self, arm: Arm, point: Point) -> list[StudyRun]:
        """Make the runs of a chosen setting with fresh seeds, in their order."""
        settings = self.settings
        return [self._run(arm, point, settings.final_overrides, FRESH + number) for number in range(settings.seeds)]

    def _run(self, arm: Arm, point: Point, of_kind: Sequence[str], seed: int) -> StudyRun:
        seeds = [f"{key}={seed}" for key in self.settings.seed_keys]
        # the arm's own last: beside rows may set what a kind of run sets
        return StudyRun((*self.settings.run_overrides, *of_kind, *seeds, *arm.overrides, *as_overrides(point)))

    def _loss(self, loss: str) -> list[str]:
        return [f"loss={loss}", *self.settings.loss_overrides.get(loss, [])]

    def _arm(self, condition: str, row: str, of_row: Sequence[str], *, tuned: bool, is_loss: bool) -> Arm:
        settings = self.settings
        overrides = (*settings.condition_overrides[condition], *of_row)
        arm = Arm(condition, row, overrides, {}, {}, is_loss)
        cfg = composed(
            "train", self._run(arm, {}, settings.trial_overrides, 0).overrides, SETTINGS, find_config_problems
        )
        if not issubclass(get_class(str(cfg.data.source.get("_target_"))), RewardSource):
            raise CaldpoError(
                "the true reward of a response is not known on its data, without which a study is none",
                key="conditions",
                value=condition,
                remedy="choose data of an embedded environment, such as data=reviews",
            )
        if not tuned:
            return arm
        space, default = search_space(cfg, settings.lr_factors)
        reads_scores = is_loss and getattr(get_class(str(cfg.loss.get("_target_"))), "needs_scores", False) is True
        return replace(arm, space=space, default=default, reads_scores=reads_scores)


def search_space(cfg: DictConfig, lr_factors: Sequence[float]) -> tuple[SearchSpace, Point]:
    """Return what is searched, the learning rate and the loss's own keys, and the values that the yamls have."""
    lr = float(cfg.optim.lr)
    low, high = lr_factors
    space: SearchSpace = {LR: Range(low * lr, high * lr, "ours: factors of the model's own rate")}
    default: dict[str, Any] = {LR: lr}
    own: SearchSpace = getattr(get_class(str(cfg.loss.get("_target_"))), "search_space")  # noqa: B009
    for key, dimension in own.items():
        if key not in cfg.loss:
            raise CaldpoError("is searched, and the loss's yaml does not have it", key=f"loss.{key}")
        space[f"loss.{key}"], default[f"loss.{key}"] = dimension, cfg.loss[key]
    return space, default
