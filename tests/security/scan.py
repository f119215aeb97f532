"""Reads source text for what could run code that came from elsewhere, or open a pickle."""

from __future__ import annotations

import ast
from collections.abc import Iterator

_PICKLING = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_SHELLS = {
    "os.system": "a shell",
    "os.popen": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "asyncio.create_subprocess_shell": "a shell",
    "yaml.unsafe_load": "a yaml that builds objects",
    "yaml.full_load": "a yaml that builds objects",
    "pandas.read_pickle": "a pickle",
    "pandas.read_hdf": "a pickle",
    "tempfile.mktemp": "a name that somebody else may take",
    "jinja2.Template": "a template outside transformers' sandbox",
    "jinja2.Environment": "a template outside transformers' sandbox",
}
_RUNNING = {"eval", "exec", "compile", "__import__"}
_SUBPROCESS = {"subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output"}


def dangers(source: str) -> Iterator[tuple[int, str]]:
    """Line and reason of everything that wants a good reason; imports under another name are seen through."""
    tree = ast.parse(source)
    names = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, f"imports {m}") for m in modules if m.split(".")[0] in _PICKLING)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and _is(value, True):
                    yield node.lineno, "trusts remote code"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, reason) for reason in _of_call(node, _full(node.func, names)))


def _of_call(call: ast.Call, name: str) -> Iterator[str]:
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    if name in _RUNNING:
        yield f"runs text by {name}"
    if name in _SHELLS:
        yield f"{name}: {_SHELLS[name]}"
    if name == "torch.load" and not _is(given.get("weights_only"), True):
        yield "torch.load without weights_only=True"
    if name == "yaml.load":
        yield f"yaml.load with {ast.unparse(call.args[1]) if len(call.args) > 1 else 'a loader that is not seen'}"
    if "shell" in given and not _is(given["shell"], False):
        yield "a shell"
    if name in _SUBPROCESS and call.args and isinstance(call.args[0], ast.Constant | ast.JoinedStr):
        yield "a command line as one text"
    if "allow_pickle" in given and not _is(given["allow_pickle"], False):
        yield "numpy with pickles"
    if _is(given.get("trust_remote_code"), True):
        yield "trusts remote code"
    if name.endswith(".from_pretrained"):
        yield from _of_loading(name.split(".")[-2], given)


def _of_loading(owner: str, given: dict[str, ast.expr]) -> Iterator[str]:
    if owner.startswith("Auto") and "trust_remote_code" not in given:
        yield f"{owner} is not told whether to trust remote code"
    if ("Model" in owner or "For" in owner) and not _is(given.get("use_safetensors"), True):
        yield f"{owner} without use_safetensors=True"


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _imported(tree: ast.AST) -> dict[str, str]:
    """What local names stand for: ``np`` for ``numpy``, ``run`` for ``subprocess.run``."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _full(node: ast.expr, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_full(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"
