"""``python -m caldpo.train loss=cal_dpo model=zephyr``: train one policy, or with ``-m`` a sweep of them."""

from __future__ import annotations

from omegaconf import DictConfig

from caldpo.config.entry import hydra_entry


@hydra_entry("train", settings="caldpo.settings.RunSettings")
def main(cfg: DictConfig) -> float | None:
    """Train as ``cfg`` says; returns the value that an optimising sweeper minimises or maximises."""
    from caldpo.run import run  # torch and transformers load only for a configuration known to be good

    return run(cfg)


if __name__ == "__main__":
    main()
