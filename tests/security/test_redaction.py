"""Secrets are masked wherever they stand; everything else is left as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from caldpo.config.conf_dir import conf_dir
from caldpo.errors import CaldpoError
from caldpo.security.secrets import MASK, is_secret_name, redact, redact_error, redact_file, redact_files, redact_text


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "longer-than-eight")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SHORT_SECRET", "true")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/me/.cache/token")
    monkeypatch.setenv("PLAIN_SETTING", "some-plain-value")


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("api_key", True),
        ("logger.api_key", True),
        ("HF_TOKEN", True),
        ("token", True),
        ("accessToken", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("password", True),
        ("GOOGLE_APPLICATION_CREDENTIALS", True),
        ("tokenizer", False),
        ("tokens_per_second", False),
        ("max_tokens", False),
        ("eos_token", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("HF_TOKEN_PATH", False),
        ("key", False),
        ("secretary", False),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


def test_values_under_secret_keys_and_of_secret_variables() -> None:
    given = {
        "api_key": "abc",
        "nested": [{"password": "p", "url": "https://me:pw@host/x"}, "--token=longer-than-eight!"],
        "token": 5,
        "empty": {"secret": "", "token": None, "api_key": "???"},
        "reference": {"token": "${oc.env:HF_TOKEN}", "password": "${oc.env:HF_TOKEN,null}"},
        "default": {"token": "${oc.env:HF_TOKEN,fallback}"},
        "model": {"tokenizer": "../tokenizers/zephyr", "eos_token": "</s>"},
        "plain": "some-plain-value true /home/me/.cache/token",
    }
    assert redact(given) == {
        "api_key": MASK,
        "nested": [{"password": MASK, "url": f"https://{MASK}@host/x"}, f"--token={MASK}"],
        "token": 5,
        "empty": {"secret": "", "token": None, "api_key": "???"},
        "reference": {"token": "${oc.env:HF_TOKEN}", "password": "${oc.env:HF_TOKEN,null}"},
        "default": {"token": MASK},
        "model": {"tokenizer": "../tokenizers/zephyr", "eos_token": "</s>"},
        "plain": "some-plain-value true /home/me/.cache/token",
    }


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("seed=1,logger.api_key=abc,loss=dpo", f"seed=1,logger.api_key={MASK},loss=dpo"),
        ("+logger.password='a b'", f"+logger.password={MASK}"),
        ("+note='see api_key=abc'", f"+note='see api_key={MASK}'"),
        ("x longer-than-eight y", f"x {MASK} y"),
        ("hf_" + "a" * 30, MASK),
        ("loss.beta=0.1", "loss.beta=0.1"),
        ("model.tokenizer=zephyr", "model.tokenizer=zephyr"),
        ("logger.token=${oc.env:HF_TOKEN}", "logger.token=${oc.env:HF_TOKEN}"),
    ],
)
def test_text(text: str, masked: str) -> None:
    assert redact_text(text) == masked


def test_files_keep_everything_else(tmp_path: Path) -> None:
    (tmp_path / "overrides.yaml").write_text("- loss=dpo\n- +logger.api_key=abc\n")
    (tmp_path / "config.yaml").write_text(
        "# a comment\nloss:\n  beta: 1.0e-05\n  other: ${loss.beta}\n  missing: ???\ntoken: abc\n"
    )
    untouched = "# kept, since nothing in here is secret\nseed:   0\n"
    (tmp_path / "hydra.yaml").write_text(untouched)
    redact_files(tmp_path)
    assert OmegaConf.load(tmp_path / "overrides.yaml") == ["loss=dpo", f"+logger.api_key={MASK}"]
    config = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml"), resolve=False)
    assert config == {
        "loss": {"beta": 1e-5, "other": "${loss.beta}", "missing": "???"},
        "token": MASK,
    }
    assert (tmp_path / "hydra.yaml").read_text() == untouched
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "hydra.yaml", "overrides.yaml"]


def test_redacting_twice_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("password: abc\n")
    redact_file(path)
    once = path.read_bytes()
    redact_file(path)
    assert path.read_bytes() == once == b"password: '***'\n"


SECRET_NAMES = """
PGPASSWORD MYSQL_PWD SSHPASS SMTP_PASS GITHUB_PAT KAGGLE_KEY AZURE_STORAGE_KEY REDISCLI_AUTH ACCESSTOKEN SECRETKEY
AWS_SESSION_TOKEN GH_TOKEN GHTOKEN NPM_TOKEN_2 CLIENTSECRET APIKEY ACCOUNTKEY DBPASS dbPassword NVIDIA_KEY DEPLOY_KEY
AZURE_STORAGE_CONNECTION_STRING SECRET_KEY_BASE COMET_API_KEY HUGGINGFACEHUB_API_TOKEN AWS_ACCESS_KEY_ID privateKey
"""
ORDINARY_NAMES = """
PWD OLDPWD INIT_CWD PATH HOME USER LOGNAME SHELL TERM LANG COMPASS BYPASS PASSTHROUGH KEYTIMEOUT LESSKEY PUBLIC_KEY
SSH_AUTH_SOCK SSH_ASKPASS GIT_ASKPASS SSH_AGENT_PID XAUTHORITY XDG_RUNTIME_DIR XDG_SESSION_ID XDG_SESSION_TYPE XDG_SEAT
DBUS_SESSION_BUS_ADDRESS SESSION_MANAGER GNOME_KEYRING_CONTROL GPG_AGENT_INFO LS_COLORS HOSTNAME DISPLAY EDITOR PAGER
PASSWORD_STORE_DIR AWS_SHARED_CREDENTIALS_FILE HF_HOME HF_TOKEN_PATH CUDA_VISIBLE_DEVICES CUDA_HOME LD_LIBRARY_PATH
TOKENIZERS_PARALLELISM SLURM_JOB_ID SLURM_JOB_PARTITION SLURM_SUBMIT_DIR SLURM_TASKS_PER_NODE MASTER_ADDR
OMP_NUM_THREADS VIRTUAL_ENV CONDA_PREFIX PYTHONPATH PYTHONHASHSEED WANDB_PROJECT WANDB_ENTITY WANDB_MODE
MAX_TOKENS PATIENCE PATTERN
AUTHOR GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL tokenizer sort_key chosen_key prompt_key
eos_token chosen_per_token monkey keyboard oauthlib pattern bypass passes forward_passes secretary key keys tokens
"""


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_names_of_common_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ORDINARY_NAMES.split())
def test_ordinary_names_are_not(name: str) -> None:
    """The value of a variable is masked in all text: a folder or a host that everybody has must not be."""
    assert not is_secret_name(name)


def test_a_place_that_is_there_is_named_in_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILD_PWD", str(tmp_path))
    monkeypatch.setenv("DEPLOY_KEY", "/not/a/file+but=base64")
    assert redact_text(f"{tmp_path}/x /not/a/file+but=base64") == f"{tmp_path}/x {MASK}"


def test_no_key_of_the_projects_own_configurations_sounds_like_a_secret() -> None:
    """But those that are: a value would be missing in every run's files."""
    keys = {str(key) for path in conf_dir().rglob("*.yaml") for key in _keys(yaml.safe_load(path.read_text()))}
    assert {key for key in keys if is_secret_name(key)} <= {"api_key"}
    assert len(keys) > 100


def _keys(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield key
            yield from _keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from _keys(value)


def test_what_is_said_of_a_key_is_no_secret_and_its_value_is() -> None:
    wrong = "hunter" + "2hunter2"
    several = CaldpoError("2 problems in the configuration\n  api_key: unknown key\n  a.password=x: too short")
    assert redact_error(several) == str(several).replace("password=x: ", f"password={MASK} ")
    assert redact_error(CaldpoError("unknown key", key="logger.api_key")) == "logger.api_key: unknown key."
    assert wrong not in redact_error(CaldpoError(f"password: {wrong}", key="logger.api_key"))
    assert wrong not in redact_error(CaldpoError("unknown key", key="api_key", value=wrong))
    assert wrong not in redact_error(CaldpoError(f"cannot be read: password: {wrong}"))
