"""Every run of a command line is composed and checked before the first one starts."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from textwrap import dedent

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from caldpo.config import preflight as module
from caldpo.config.composer import Composer
from caldpo.config.conf_dir import conf_dir
from caldpo.config.extras import EXTRAS
from caldpo.config.hydra_session import HydraSession, hydra_session
from caldpo.config.preflight import check_composes, preflight
from caldpo.config.unknown_keys import unheard_of
from caldpo.config.validation import find_problems
from caldpo.errors import CaldpoError
from tests.helpers.messages import names, refused

pytestmark = pytest.mark.usefixtures("package")

CONF = {
    "main.yaml": """
        defaults:
          - hydra_base
          - loss: cal
          - optim: adamw
          - data: made
          - logger: null
          - experiment: null
          - suite: [first]
          - _self_
        name: demo
        seed: 0
        reward_beta: ${loss.beta}
        trainer:
          _target_: caldpo.parts.Trainer
          devices: 1
    """,
    "loss/cal.yaml": "{_target_: caldpo.parts.Loss, beta: 0.1, targets: fixed}",
    "loss/smooth.yaml": "{_target_: caldpo.parts.Smooth, beta: 0.1, label_smoothing: 0.0}",
    "loss/narrow.yaml": "{_target_: caldpo.parts.Narrow, beta: 0.1}",
    "optim/adamw.yaml": """
        _target_: caldpo.parts.Optim
        lr: 1.0e-3
        beta1: 0.9
        schedule: {_target_: caldpo.parts.Schedule, decay: cosine}
    """,
    "data/made.yaml": "{}",
    "data/local.yaml": "{_target_: caldpo.parts.Model, path: '???'}",
    "logger/csv.yaml": "{}",
    # a group of which several options can be chosen at once
    "suite/first.yaml": "# @package first\n_target_: caldpo.parts.Schedule\ndecay: linear\n",
    "suite/second.yaml": "# @package second\n_target_: caldpo.parts.Schedule\ndecay: linear\n",
    "experiment/grid.yaml": """
        # @package _global_
        hydra:
          mode: MULTIRUN
          sweeper:
            params:
              seed: 0,1
              loss.beta: 0.1,0.2
    """,
    # a sweeper that draws values
    "hydra/sweeper/drawing.yaml": """
        _target_: somewhere.DrawingSweeper
        params: {loss.beta: "interval(0.1,2)"}
    """,
    "hydra/launcher/cluster.yaml": "{_target_: somewhere.ClusterLauncher}",
    "hydra/launcher/rocket.yaml": "{_target_: somewhere.SlurmLauncher, tasks_per_node: 1}",
}


@pytest.fixture(autouse=True)
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration folder; the current folder is beside it."""
    for name, text in CONF.items():
        path = tmp_path / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    shutil.copy(conf_dir() / "hydra_base.yaml", tmp_path / "conf")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return tmp_path / "conf"


def session(config_name: str = "main") -> AbstractContextManager[HydraSession]:
    return hydra_session(config_name, conf=Path("../conf"))


def check(*overrides: str, m: bool = False) -> list[str]:
    with session() as ours:
        return preflight(ours, overrides, multirun=m, settings="caldpo.parts.Settings")[1]


def answer(*overrides: str, m: bool = False) -> str:
    before = set(Path().rglob("*"))
    with pytest.raises(CaldpoError) as caught:
        check(*overrides, m=m)
    assert set(Path().rglob("*")) == before  # nothing is left behind by what never starts
    return str(caught.value)


def test_a_good_run_has_its_folder_made() -> None:
    (override,) = check("loss=smooth", "loss.label_smoothing=0.1")
    key, _, folder = override.partition("=")
    assert key == "hydra.run.dir"
    assert folder.startswith("outputs/demo_")
    assert Path(folder).is_dir()
    assert HydraConfig.instance().cfg is None


def test_a_group_in_which_a_list_is_chosen_can_be_added_to() -> None:
    assert check("suite=[first,second]", "second.decay=cosine")
    assert check("+suite=second", "second.decay=cosine")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["loss.betta=1"],
            ["loss.betta:", "did you mean beta?", "beta, targets"],
        ),
        (["sed=1"], ["sed:", "did you mean seed?", "data", "reward_beta"]),
        (["los=cal"], ["los:", "did you mean loss?"]),
        (["optim.schedul.decay=x"], ["optim.schedul.decay", "(did you mean schedule?)"]),
        (["loss=calm"], ["loss=calm:", "did you mean cal?", "cal, narrow, smooth"]),
        (["loss=3"], ["loss=3:", "cal, narrow, smooth"]),
        (["suite=frist"], ["suite=frist:", "did you mean first?", "first, second"]),
        (
            ["suite=[first,secnd]"],
            ["suite=secnd:", "did you mean second?", "first, second"],
        ),
        (["suit=first"], ["suit:", "did you mean suite?"]),
        (["first.deca=cosine"], ["first.deca:", "did you mean decay?"]),
        (["loss.beta=-1"], ["loss.beta=-1:", "> 0"]),
        (["loss.beta=nan"], ["loss.beta=nan:", "> 0"]),
        (["loss.beta=abc"], ["loss.beta=abc:", "> 0"]),
        (["loss.targets=foo"], ["loss.targets=foo:", "fixed, scores"]),
        (["+loss.label_smoothing=1"], ["loss.label_smoothing:", "beta, targets"]),
        (["+loss.beta=1"], ["loss.beta:", "loss.beta=1"]),
        (["+sed=1"], ["sed:", "did you mean seed?"]),
        (["~loss.betta"], ["loss.betta:", "did you mean beta?"]),
        (["name=../x"], ["name=../x:", "folder"]),
        (["data=local"], ["data.path:", "data.path=..."]),
        (["loss.beta=[1,"], ["loss.beta=[1,:"]),
        (["loss.targets='\udcff'"], [r"loss.targets='\udcff':", "UTF-8"]),  # as argv has other bytes
        (["seed=" + "9" * 5000], ["seed=9999"]),  # Python reads no such numbers
        (["suite=[1,2]"], ["suite=[1,2]:", "first, second"]),
        (["loss.beta"], ["loss.beta:", "key=value"]),
        (["=3"], ["=3:", "key=value"]),
        (["loss=cal,smooth"], ["loss=cal,smooth:", "-m"]),
        (["seed=range(0,3)"], ["seed=range(0,3):", "-m"]),
        (["seed=${nope}"], ["seed=${nope}:"]),
        (["hydra/launcher=joblob"], ["hydra/launcher=joblob:", "did you mean joblib?"]),
        (["hydra.run.dirr=x"], ["hydra.run.dirr:", "did you mean dir?"]),
        (["+experiment=grid"], ["experiment:", "experiment=grid"]),
        (["loss@here=cal"], ["loss@here:", "package"]),
        (["trainer={a: 1}"], ["trainer.a:", "devices"]),
        (["optim.schedule={decay: linear, b: 2}"], ["optim.schedule.b:", "decay"]),
    ],
)
def test_one_mistake(overrides: list[str], said: list[str]) -> None:
    text = answer(*overrides)
    assert text.startswith(said[0])  # as one problem of several does not
    names(text, *said[1:])


def test_all_mistakes_at_once() -> None:
    text = answer("loss.betta=1", "sed=2", "loss.beta=0", "optim.lr=x", "loss.targets=[", "optim.lr=1=2,3")
    for fragment in ("loss.betta:", "sed:", "loss.beta=0:", "optim.lr", "loss.targets=[:"):
        assert f"\n  {fragment}" in text


def test_a_group_that_cannot_be_chosen_hides_nothing_misleading() -> None:
    text = answer("loss=smoth", "loss.label_smoothing=0.1")
    names(text, "loss=smoth:", "did you mean smooth?")
    assert "label_smoothing" not in text


def test_a_group_that_cannot_be_chosen_hides_no_mistake_that_is_one_with_all_its_options() -> None:
    text = answer("loss=smoth", "trainer.device=2", "optim.lr=x", "seed=-1", "loss.beta=-1")
    for fragment in ("loss=smoth:", "trainer.device: unknown key (did you mean devices?)", "optim.lr=x:", "seed=-1:"):
        assert f"\n  {fragment}" in text
    assert "loss.beta" not in text
    # an experiment may choose other options, which have the key
    text = answer("experiment=gird", "loss.label_smoothing=0.1", "trainer.devicez=2", "loss=smoth")
    names(text, "experiment=gird:", "loss=smoth:", "trainer.devicez:")
    assert "label_smoothing" not in text


def test_an_option_of_a_missing_extra_names_the_extra(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXTRAS, ("hydra/launcher", "shuttle"), "space")
    (conf / "hydra" / "launcher" / "ours.yaml").write_text("defaults: [shuttle, _self_]\nname: x\n")
    for option in ("shuttle", "ours"):  # itself, and as what a yaml of ours builds on
        text = answer(f"hydra/launcher={option}")
        names(text, "hydra/launcher=shuttle:", "pip install 'caldpo[space]'")


def test_secrets_in_overrides_are_not_repeated() -> None:
    assert "abcdef" not in answer("loss.api_key=abcdef", "++loss.api_key=abcdef", "token=abcdef")


def test_a_run_is_composed_once_to_be_checked_and_once_by_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    with session() as ours:
        loader, composed = type(ours.loader), []
        original = loader.load_configuration
        monkeypatch.setattr(loader, "load_configuration", lambda *a, **k: composed.append(1) or original(*a, **k))
        checked = []
        monkeypatch.setattr(module, "find_problems", lambda *a: checked.append(1) or find_problems(*a))
        mode, added = preflight(ours, ["seed=1"], multirun=False, settings="caldpo.parts.Settings")
        assert (len(composed), len(checked)) == (1, 1)
        seeds: list[int] = []
        ours.run(lambda cfg: seeds.append(cfg.seed), ["seed=1", "hydra.output_subdir=null", *added], mode)
        assert seeds == [1]
        assert (len(composed), len(checked)) == (2, 1)


@pytest.mark.parametrize("overrides", [["los=cal"], ["loss.betta=1"], ["los=cal", "optim.schedul.decay=x", "seed=1"]])
def test_keys_that_are_in_no_file_are_explained_by_one_composition(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with session() as ours:
        loader, composed = type(ours.loader), []
        load, defaults = loader.load_configuration, loader.compute_defaults_list
        monkeypatch.setattr(loader, "load_configuration", lambda *a, **k: composed.append("all") or load(*a, **k))
        monkeypatch.setattr(loader, "compute_defaults_list", lambda *a: composed.append("defaults") or defaults(*a))
        with pytest.raises(CaldpoError, match="unknown key"):
            preflight(ours, overrides, multirun=False, settings="caldpo.parts.Settings")
        assert composed == ["all"]


def test_a_key_that_an_override_adds_is_heard_of() -> None:
    with session() as ours:
        composer = Composer(lambda texts: ours.compose(texts, RunMode.RUN), ours.loader)
        assert unheard_of(composer, ["+loss.extra=1", "loss.extra=2"]) == {}
        # groups of a search path of the user's own are found while Hydra composes
        assert unheard_of(composer, ["hydra.searchpath=[file:///mine]", "flavour=sour"]) == {}
        assert list(unheard_of(composer, ["loss.extra=2", "seed=1", "los=cal"])) == ["loss.extra=2", "los=cal"]


class TestSweeps:
    def test_a_good_sweep(self) -> None:
        (override,) = check("loss=cal,smooth", "seed=0,1", m=True)
        assert override.startswith("hydra.sweep.dir=outputs/demo-sweep_")

    @pytest.mark.parametrize(
        ("overrides", "said"),
        [
            (["loss=cal,smoth"], ["loss=smoth:", "did you mean smooth?"]),
            (["loss=cal", "loss.beta=0.1,-1"], ["loss.beta=-1:", "> 0"]),
            (["loss=cal,smooth", "loss.label_smoothing=0.1"], ["loss.label_smoothing:", "loss=cal"]),
            (["seed=0,1", "loss.betta=1,2"], ["loss.betta:", "did you mean beta?"]),
            (["seed=interval(0,1)"], ["seed:", "interval"]),
            (["hydra.run.dir=a,b"], ["hydra.run.dir=a,b:"]),
            (["seed=0,1", "data=local"], ["data.path:"]),
            (["seed=range(-1,2)"], ["seed=-1:", ">= 0"]),
            (["optim.schedule.decay=choice(cosine,cosin)"], ["optim.schedule.decay=cosin:", "cosine"]),
        ],
    )
    def test_a_mistake_in_any_run_stops_all(self, overrides: list[str], said: list[str]) -> None:
        text = answer(*overrides, m=True)
        assert text.startswith(said[0])
        names(text, *said[1:])  # told once, not once per run

    def test_a_sweep_asked_for_by_the_configuration(self) -> None:
        (override,) = check("experiment=grid")
        assert override.startswith("hydra.sweep.dir=")
        names(answer("experiment=grid", "loss.beta=0.1,-3"), "loss.beta=-3:")

    def test_a_sweeper_that_draws_values_is_checked_at_its_ends(self) -> None:
        numbered, _ = check("hydra/sweeper=drawing", "seed=0,1", m=True)
        assert numbered.startswith("hydra.sweep.subdir=")
        text = answer("hydra/sweeper=drawing", "loss.beta=interval(-1,2)", "seed=0,1,-2", m=True)
        names(text, "loss.beta=-1.0:", "> 0", "seed=-2:")

    def test_several_devices_need_a_launcher_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "trainer.devices=2" in answer("trainer.devices=1,2", m=True)
        assert "hydra/launcher=slurm" in answer("hydra/launcher=joblib", "trainer.devices=2", m=True)
        one, four = (f"hydra.launcher.tasks_per_node={count}" for count in (1, 4))
        slurm = ["hydra/launcher=rocket", "trainer.devices=4"]
        names(answer(*slurm, one, m=True), "hydra.launcher.tasks_per_node=1:", 4)
        assert check(*slurm, four, m=True)
        assert check("hydra/launcher=cluster", "trainer.devices=2", m=True)
        assert check("trainer.devices=2")  # one run may have as many as there are
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
        assert check("trainer.devices=2", m=True)

    def test_each_choice_of_groups_sees_each_value_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        composed = []
        original = module._run_problems
        monkeypatch.setattr(module, "_run_problems", lambda *args: composed.append(1) or original(*args))
        check("loss=cal,smooth", "seed=range(0,4)", "loss.beta=0.1,0.2,0.3", m=True)
        assert len(composed) == 2 * (4 + 3 - 1)  # of 24 runs

    def test_most_mistakes_are_answered_by_one_look_at_each_value(self, monkeypatch: pytest.MonkeyPatch) -> None:
        composed: list[int] = []
        original = module._run_problems
        monkeypatch.setattr(module, "_run_problems", lambda *args: composed.append(1) or original(*args))
        assert "seed=-1" in answer("loss=cal,smooth", "loss.beta=0.1,0.2,0.3", "seed=0,1,-1", m=True)
        assert len(composed) == 1 + 1 + 2 + 2  # of 18 runs

    def test_a_mistake_in_one_combination_alone_is_found(self) -> None:
        # 5 is a good beta of cal, and narrow is good with 0.1
        names(answer("loss=cal,narrow", "loss.beta=0.1,5", m=True), "loss.beta=5:", ">= 0", "<= 1")


def test_showing_a_configuration_needs_no_values() -> None:
    with session() as ours:
        check_composes(ours, ["data=local"])
        with refused("did you mean beta", key="loss.betta"):
            check_composes(ours, ["loss.betta=1"])
    with session("man") as ours, refused("man", key="configuration"):
        check_composes(ours, [])


def test_a_broken_file_is_named(conf: Path) -> None:
    (conf / "loss" / "broken.yaml").write_text("beta: [1\n")
    text = answer("loss=broken")
    names(text, conf / "loss" / "broken.yaml", "line 2")
