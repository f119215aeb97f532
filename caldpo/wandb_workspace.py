"""``python -m caldpo.wandb_workspace TEAM/PROJECT``: save reward dynamics as a workspace of a W&B project.

Its panels average the runs of each loss, with the standard deviation over seeds. A saved workspace shows the runs that
come later too, so that once for each project is enough.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from caldpo import metric_definitions as m
from caldpo.config.run_lifecycle import describe_error
from caldpo.errors import CaldpoError

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "Reward dynamics"
STEP = "trainer/global_step"  # as Lightning names the optimiser step
_DYNAMICS = (m.CHOSEN_LOG_RATIO, m.REJECTED_LOG_RATIO, m.REWARD_MARGIN, m.ACCURACY, m.DISPLACEMENT, m.LOSS)


def workspace(entity: str, project: str) -> Workspace:
    """Build the workspace, without asking W&B: held-out pairs first, then training."""
    from wandb_workspaces import reports, workspaces

    v2 = reports.v2

    def section(name: str, metrics: Sequence[m.MetricDefinition]) -> workspaces.Section:
        panels: list[Any] = [
            v2.LinePlot(
                title=f"{metric.title} ({metric.unit})",
                x=STEP,
                y=[metric.name],
                title_x="optimiser step",
                groupby=v2.Config("loss_name"),
                groupby_aggfunc="mean",
                groupby_rangefunc="stddev",
            )
            for metric in metrics
        ]
        return workspaces.Section(name=name, panels=panels, is_open=True)

    sections = [
        section("Held-out pairs", [metric.held_out for metric in _DYNAMICS]),
        section("Training", [*_DYNAMICS, *m.STEP_METRICS]),
    ]
    return workspaces.Workspace(entity=entity, project=project, name=NAME, sections=sections)


def save(entity: str, project: str) -> str:
    """Save the workspace, and return its address.

    Raises:
        CaldpoError: the extra is not installed, or W&B refuses.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise CaldpoError("not installed", key="wandb_workspaces", remedy="pip install 'caldpo[workspaces]'")
    try:
        return str(workspace(entity, project).save().url)
    except Exception as error:  # no account, no such project, no network
        raise CaldpoError(
            f"W&B does not save the workspace ({describe_error(error)})",
            key="wandb_workspace",
            value=f"{entity}/{project}",
            remedy="log in (wandb login), and train a run with logger=wandb first, which makes the project",
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Save the workspace of the project that is named, and print its address."""
    parser = argparse.ArgumentParser(
        prog="python -m caldpo.wandb_workspace", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("place", metavar="TEAM/PROJECT", help="of W&B; the project has runs of caldpo already")
    place = str(parser.parse_args(argv).place)
    entity, _, project = place.rpartition("/")
    entity = entity or os.environ.get("WANDB_ENTITY", "")
    if not entity or not project:
        parser.error(f"{place}: name user or team as well: TEAM/{project or 'PROJECT'}")
    try:
        print(save(entity, project))
    except CaldpoError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
