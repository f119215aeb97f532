"""A composed configuration as the objects that it describes. No heavy imports here: it is read before any."""

from __future__ import annotations

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from caldpo.bench.benchmark_model import Shape
from caldpo.bench.benchmark_settings import BenchmarkSettings


def read(cfg: DictConfig) -> tuple[BenchmarkSettings, Shape]:
    """Settings and shape.

    Raises:
        CaldpoError: values contradict each other; raised through Hydra for those of the shape.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = BenchmarkSettings(**{name: plain[name] for name in BenchmarkSettings.__dataclass_fields__})
    shape: Shape = instantiate(cfg.benchmark_model)
    return settings, shape
