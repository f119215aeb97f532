"""The package's own source: nothing in it runs text, a shell, or what a pickle says."""

from __future__ import annotations

from pathlib import Path

import pytest

import caldpo
from tests.security.scan import dangers

PACKAGE = Path(caldpo.__file__).parent

# Everything that stands in the package although it looks dangerous, and why it may.
ALLOWED = {
    # annotations of the package's own source, read as they stand there; no text of a user's or of a run's
    ("config/signatures.py", "runs text by eval"),
    ("config/signatures.py", "runs text by compile"),
    # a SafeLoader, asserted below
    ("utils/yaml_io.py", "yaml.load with SAFE_LOADER"),
    ("evaluation/lm_eval/task_index.py", "yaml.load with SAFE_LOADER"),
    ("config/composer.py", "yaml.load with SAFE_LOADER"),
    # blocks that this process packed, in its memory or in a file without a name that it alone has open
    ("data/stored_pairs.py", "imports pickle"),
    # an error of this process' own child is packed to see whether it can be sent
    ("utils/ordered_map.py", "imports pickle"),
    # the project's own templates alone; what a run or a user wrote is a value in them, and escaped
    ("report/escaping.py", "jinja2.Environment: a template outside transformers' sandbox"),
    ("report/page/page_html.py", "jinja2.Environment: a template outside transformers' sandbox"),
    # behind checks of its own: caldpo.models.adapter_folder
    ("models/adapter_folder.py", "PeftModel without use_safetensors=True"),
}


def test_nothing_in_the_package_runs_what_it_reads() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), reason)
        for path in sorted(PACKAGE.rglob("*.py"))
        for _, reason in dangers(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


def test_the_loader_of_runs_is_a_safe_one() -> None:
    import yaml

    from caldpo.utils.yaml_io import SAFE_LOADER

    assert issubclass(SAFE_LOADER, yaml.constructor.SafeConstructor)
    with pytest.raises(yaml.constructor.ConstructorError):
        yaml.load("!!python/object/apply:os.getcwd []", SAFE_LOADER)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import torch\ntorch.load(p)", "torch.load without"),
        ("import torch\ntorch.load(p, weights_only=False)", "torch.load without"),
        ("from torch import load\nload(p)", "torch.load without"),
        ("import torch as t\nt.load(p, map_location='cpu')", "torch.load without"),
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("import pandas as pd\npd.read_pickle(p)", "pandas.read_pickle"),
        ("import numpy as np\nnp.load(p, allow_pickle=True)", "numpy with pickles"),
        ("import yaml\nyaml.load(t, yaml.Loader)", "yaml.load with yaml.Loader"),
        ("eval('1')", "runs text by eval"),
        ("exec(x)", "runs text by exec"),
        ("from os import system as s\ns('ls')", "os.system"),
        ("import subprocess\nsubprocess.run('ls', check=True)", "as one text"),
        ("import subprocess\nsubprocess.run(x, shell=True)", "a shell"),
        ("import subprocess\nsubprocess.run(x, shell=flag)", "a shell"),
        ("f(trust_remote_code=True)", "trusts remote code"),
        ("f(**{'trust_remote_code': True})", "trusts remote code"),
        ("AutoTokenizer.from_pretrained(p)", "not told whether"),
        ("AutoModelForCausalLM.from_pretrained(p, trust_remote_code=False)", "without use_safetensors"),
        ("import jinja2\njinja2.Template(t)", "outside transformers' sandbox"),
    ],
)
def test_the_search_finds_what_it_is_for(source: str, reason: str) -> None:
    assert any(reason in found for _, found in dangers(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(p, weights_only=True)",
        "import re\nre.compile('x')",
        "model.eval()",
        "import subprocess\nsubprocess.run([a, b], check=True)",
        "AutoTokenizer.from_pretrained(p, trust_remote_code=trusted)",
    ],
)
def test_the_search_leaves_the_rest_alone(source: str) -> None:
    assert not list(dangers(source))
