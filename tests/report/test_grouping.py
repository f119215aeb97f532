"""Which runs are seeds of one setting, what settings are called, and how repeats count."""

from __future__ import annotations

import json

import pytest

from caldpo.config.find_runs import find_runs
from caldpo.report.grouping import differences, group_runs
from caldpo.report.read_runs import read_runs
from caldpo.report.shown_metrics import CHOSEN
from tests.report.runs import finals, held_out, write_run

ROWS = [held_out(0, 0.0, 0.0), held_out(10, -2.0, -5.0)]


def settings_in(folder):
    return group_runs(read_runs(find_runs(folder), folder))


def test_runs_that_differ_in_seed_and_folder_are_one_setting(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"seed={seed}", seed=seed, rows=ROWS, config={"name": f"run{seed}"})
    (setting,) = settings_in(tmp_path)
    assert setting.label == setting.loss == "dpo"
    assert [run.seed for run in setting.runs] == [0, 1, 2]
    assert setting.seeds == 3


def test_the_same_without_hydras_folder(tmp_path):
    """Copies often lose hidden folders; then values that follow the seed or the folder are resolved."""
    for seed in range(3):
        fixed = {"callbacks": {"oracle": {"seed": 0}}}  # equal to the run's seed in one run alone
        write_run(tmp_path / f"seed={seed}", seed=seed, rows=ROWS, hydra=False, config=fixed)
    (setting,) = settings_in(tmp_path)
    assert setting.seeds == 3
    assert setting.config["callbacks.oracle.seed"] == 0
    assert "data.seed" not in setting.config


def test_a_seed_of_its_own_is_a_setting_of_its_own(tmp_path):
    for place, seed in enumerate((0, 7)):
        write_run(
            tmp_path / str(place),
            rows=ROWS,
            config={"callbacks": {"oracle": {"seed": seed}}},
            overrides=[f"callbacks.oracle.seed={seed}"],
        )
    assert [s.label for s in settings_in(tmp_path)] == [
        "dpo oracle.seed=0",
        "dpo oracle.seed=7",
    ]


def test_labels_carry_the_overrides_that_differ(tmp_path):
    shared = ["trainer.max_steps=20", "logger=csv"]
    job = 0
    for loss, beta in (("dpo", 0.1), ("cal_dpo", 0.1), ("cal_dpo", 0.05)):
        for seed in (0, 1):
            overrides = [*shared, *([f"loss.beta={beta}"] if beta == 0.05 else [])]
            write_run(
                tmp_path / f"{job}",
                loss,
                seed,
                rows=ROWS,
                loss_keys={"beta": beta},
                overrides=overrides,
                job=job,
            )
            job += 1
    groups = settings_in(tmp_path)
    assert [s.label for s in groups] == ["dpo", "cal_dpo", "cal_dpo beta=0.05"]
    assert [s.seeds for s in groups] == [2, 2, 2]


def test_an_override_that_states_the_default_makes_no_setting(tmp_path):
    write_run(tmp_path / "a", seed=0, rows=ROWS, loss_keys={"beta": 0.1})
    write_run(tmp_path / "b", seed=1, rows=ROWS, loss_keys={"beta": 0.1}, overrides=["loss.beta=0.1"])
    (setting,) = settings_in(tmp_path)
    assert setting.seeds == 2


def test_settings_with_equal_overrides_are_told_apart_by_their_configuration(tmp_path):
    """Two sweeps, between which a default was changed in a yaml."""
    write_run(tmp_path / "old" / "dpo", rows=ROWS, config={"optim": {"lr": 0.001}})
    write_run(tmp_path / "new" / "dpo", rows=ROWS, config={"optim": {"lr": 0.0001}})
    assert [s.label for s in settings_in(tmp_path)] == ["dpo lr=0.0001", "dpo lr=0.001"]


def test_what_only_logs_makes_no_setting(tmp_path):
    for seed, tracker in enumerate(("csv", "wandb")):
        target = {"logger": {"_target_": f"caldpo.loggers.{tracker}"}, "export": bool(seed)}
        write_run(tmp_path / tracker, seed=seed, rows=ROWS, config=target, overrides=[f"logger={tracker}"])
    assert [s.label for s in settings_in(tmp_path)] == ["dpo"]


def test_a_seed_run_twice_counts_once(tmp_path):
    for place, (seed, chosen) in enumerate([(0, -2.0), (0, -4.0), (1, -9.0)]):
        rows = [held_out(0, 0.0, 0.0), held_out(10, chosen, -12.0)]
        write_run(tmp_path / str(place), seed=seed, rows=rows, metrics=finals(rows[-1]), job=place)
    (setting,) = settings_in(tmp_path)
    assert len(setting.runs) == 3
    assert setting.seeds == 2
    assert setting.finals(CHOSEN.final) == [-3.0, -9.0]
    assert setting.curves(CHOSEN.curve) == [{0: 0.0, 10: -3.0}, {0: 0.0, 10: -9.0}]


def test_only_finished_runs_have_figures(tmp_path):
    write_run(tmp_path / "a", seed=0, rows=ROWS, metrics=finals(ROWS[-1]))
    write_run(tmp_path / "b", seed=1, rows=ROWS, metrics=finals(ROWS[-1]), status="interrupted")
    (setting,) = settings_in(tmp_path)
    assert len(setting.runs) == 2
    assert setting.finals(CHOSEN.final) == [-2.0]
    assert len(setting.curves(CHOSEN.curve)) == 1


def test_labels_tell_what_differs_among_the_settings_of_a_loss(tmp_path):
    """Not what tells losses apart, nor what all of them were given, nor what follows from a chosen option."""
    path = "/a/long/way/to/somebody's/preference_pairs.jsonl"
    own = {"dpo": ["optim.lr=0.1"], "ipo": [], "ipo 2": [f"files.train={path}"]}
    for name, overrides in own.items():
        config = {
            "optim": {"lr": 0.1 if name == "dpo" else 0.2},
            "files": {"train": path if " " in name else "t.jsonl"},
        }
        write_run(tmp_path / name, name[:3], rows=ROWS, config=config, overrides=["trainer.max_steps=9", *overrides])
    assert [s.label for s in settings_in(tmp_path)] == ["dpo", "ipo", "ipo train=...'s/preference_pairs.jsonl"]


def test_of_many_differences_a_label_names_as_few_as_are_needed(tmp_path):
    for i in range(3):
        config = {"model": {f"key_{k}": k * i for k in range(9)}}
        write_run(tmp_path / str(i), rows=ROWS, loss_keys={"beta": min(i, 1)}, config=config)
    labels = [s.label for s in settings_in(tmp_path)]
    assert labels == [
        "dpo beta=0 key_1=0",
        "dpo beta=1 key_1=1",
        "dpo beta=1 key_1=2",
    ]


def test_another_option_is_told_by_its_name(tmp_path):
    for name in ("tiny", "zephyr"):
        folder = write_run(tmp_path / name, rows=ROWS, config={"model": {"path": name, "size": len(name)}})
        choices = {"hydra": {"runtime": {"choices": {"loss": "dpo", "model": name}}}}
        (folder / ".hydra" / "hydra.yaml").write_text(json.dumps(choices))
    assert [s.label for s in settings_in(tmp_path)] == ["dpo model=tiny", "dpo model=zephyr"]


def test_differences():
    configs = [{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}]
    assert differences(configs) == {"b": [2, 3], "c": [None, 4]}


@pytest.mark.parametrize("hydra", [True, False])
def test_order_is_that_of_the_sweep(tmp_path, hydra):
    for job, loss in enumerate(("ipo", "cal_dpo", "dpo")):
        write_run(tmp_path / f"{job}_{loss}", loss, rows=ROWS, job=job, hydra=hydra)
    assert [s.label for s in settings_in(tmp_path)] == ["ipo", "cal_dpo", "dpo"]


def test_modifiers_are_named_together(tmp_path):
    for place, chosen in enumerate(({}, {"wpo": {"alignment": "none"}}, {"wpo": {"alignment": "none"}, "nll": {}})):
        chosen = {name: {"_target_": f"caldpo.modifiers.{name}", **keys} for name, keys in chosen.items()}
        write_run(tmp_path / str(place), rows=ROWS, config={"modifier": chosen} if chosen else {})
    assert [s.label for s in settings_in(tmp_path)] == ["dpo", "dpo modifier=wpo", "dpo modifier=nll+wpo"]


def test_of_a_key_as_many_last_parts_are_named_as_tell_it_from_others(tmp_path):
    for i in range(2):
        config = {"model": {"path": f"m{i}"}, "reference": {"path": "r"}, "optim": {"schedule": {"decay": f"d{i}"}}}
        write_run(tmp_path / str(i), rows=ROWS, config=config)
    assert [s.label for s in settings_in(tmp_path)] == ["dpo model.path=m0 decay=d0", "dpo model.path=m1 decay=d1"]


def test_data_and_model_are_named_where_losses_differ_in_them(tmp_path):
    for loss, data in (("dpo", "reviews"), ("ipo", "arithmetic"), ("ipo", "reviews")):
        folder = write_run(tmp_path / f"{loss}_{data}", loss, rows=ROWS, config={"data": {"source": data}})
        choices = {"hydra": {"runtime": {"choices": {"loss": loss, "model": "tiny", "data": data}}}}
        (folder / ".hydra" / "hydra.yaml").write_text(json.dumps(choices))
    assert [s.label for s in settings_in(tmp_path)] == ["dpo data=reviews", "ipo data=arithmetic", "ipo data=reviews"]
