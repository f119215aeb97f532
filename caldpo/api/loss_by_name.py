"""A loss by its name, with the settings of its yaml, and own loss classes as options of ``loss``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from caldpo.config.conf_dir import conf_dir, known_losses
from caldpo.config.did_you_mean import suggest
from caldpo.errors import CaldpoError

if TYPE_CHECKING:
    from caldpo.losses.base import PreferenceLoss


def build_loss(name: str, **settings: Any) -> PreferenceLoss:
    """Build a loss of ``conf/loss`` by its name: a module that maps :class:`~caldpo.types.PairLogps` to nats per pair.

    Args:
        name: such as ``cal_dpo``.
        settings: keys of its yaml with other values, such as ``beta=0.05``.

    Raises:
        CaldpoError: no such loss, key or value.
    """
    from omegaconf import OmegaConf

    from caldpo.components import build
    from caldpo.config.run_lifecycle import as_caldpo_error
    from caldpo.config.validation import check_config
    from caldpo.utils.yaml_io import read_yaml

    if name not in known_losses():
        raise CaldpoError(
            f"no such loss{suggest(name, known_losses())}",
            key="loss",
            value=name,
            remedy=f"choose among {', '.join(known_losses())}",
        )
    section = OmegaConf.create({"loss": {**read_yaml(conf_dir() / "loss" / f"{name}.yaml"), **settings}})
    check_config(section)
    try:
        loss: PreferenceLoss = build(section.loss, "loss")
    except Exception as error:
        raise as_caldpo_error(error) or error from None
    return loss


@contextmanager
def loss_option(loss: str | type[PreferenceLoss]) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Open an option of ``loss``: the name itself, or one made of a class, in a folder of yamls of its own.

    Raises:
        CaldpoError: the class cannot be imported by its name, or is no class of losses.
    """
    if isinstance(loss, str):
        yield loss, ()
        return
    from caldpo.losses.base import PreferenceLoss

    if not (isinstance(loss, type) and issubclass(loss, PreferenceLoss)):
        raise CaldpoError(
            f"{loss!r} is neither the name of a loss nor a subclass of caldpo.losses.base.PreferenceLoss",
            key="loss",
            remedy='write loss="cal_dpo", or loss=MyLoss with its settings in settings={"loss.beta": 0.1}: the run'
            " builds the loss itself, and records of what",
        )
    if "<locals>" in loss.__qualname__:
        raise CaldpoError(
            "is defined inside a function, where it cannot be imported from",
            key="loss",
            value=loss.__qualname__,
            remedy="define it at the top level of a module or notebook",
        )
    from omegaconf import OmegaConf

    from caldpo.config.overrides import require_plain

    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", loss.__name__).lower()
    keys: dict[str, Any] = {"_target_": f"{loss.__module__}.{loss.__qualname__}"}
    for parameter in inspect.signature(loss).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            key = f"loss.{parameter.name}"
            required = parameter.default is parameter.empty
            keys[parameter.name] = "???" if required else require_plain(parameter.default, key)
    with TemporaryDirectory(prefix="caldpo-loss-") as folder:
        file = Path(folder) / "loss" / f"{name}.yaml"
        file.parent.mkdir()
        file.write_text(OmegaConf.to_yaml(OmegaConf.create(keys)), encoding="utf-8")
        yield name, (Path(folder),)
