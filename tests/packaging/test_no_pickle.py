"""Nothing that ditcast is made of can turn bytes into code: no pickle, no eval, no shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("service/ditcast_service", "runtime/ditcast_runtime", "clients/python/ditcast_client")

MODULES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    *("multiprocessing", "xmlrpc", "code", "runpy"),
}
"""Of these nothing is imported. multiprocessing sends pickles."""

CALLS = {
    *("eval", "exec", "compile", "__import__"),
    # These of torch and numpy unpickle, or may.
    *("torch.load", "numpy.load", "np.load", "os.system", "os.popen"),
    *("dist.broadcast_object_list", "dist.all_gather_object", "dist.gather_object"),
    *("dist.scatter_object_list", "dist.send_object_list", "dist.recv_object_list"),
    *("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"),
}
KEYWORDS = {"shell", "allow_pickle", "trust_remote_code"}
"""Never given as True."""


def findings(tree: ast.AST) -> Iterator[str]:
    """Name what has no place in a tree."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names if _top(each.name) in MODULES)
            case ast.ImportFrom(module=str(module)) if _top(module) in MODULES:
                yield module
            case ast.Call(func=function, keywords=keywords):
                name = ast.unparse(function)
                if name in CALLS:
                    yield name
                if name == "yaml.load" and "_StrictLoader" not in ast.unparse(node):
                    yield ast.unparse(node)
                for each in keywords:
                    if each.arg in KEYWORDS and ast.unparse(each.value) != "False":
                        yield f"{name}({each.arg})"


def _top(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_can_make_code_of_bytes(package: str) -> None:
    """All files are read, and what they import and call is looked at."""
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 10
    found = {
        str(file.relative_to(ROOT)): names
        for file in files
        if (names := [*findings(ast.parse(file.read_text("utf-8")))])
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from multiprocessing.connection import Client",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "yaml.load(text, Loader=yaml.Loader)",
        "dist.broadcast_object_list(x)",
        "run(x, shell=True)",
        "pipe(trust_remote_code=flag)",
    ],
)
def test_what_could_would_be_found(text: str) -> None:
    """The test above can fail."""
    assert [*findings(ast.parse(text))]


def test_the_one_loader_of_yaml_is_a_safe_one() -> None:
    """What `yaml.load` is given makes nothing but mappings, lists and scalars."""
    import yaml

    from ditcast_runtime.settings.files import _StrictLoader

    assert issubclass(_StrictLoader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getcwd []", Loader=_StrictLoader)  # noqa: S506
