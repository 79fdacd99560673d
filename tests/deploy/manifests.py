"""Reads deploy/kubernetes as kustomize would, as far as it is used there, and no further.

kustomize itself is in no registry that tests install from; where it is installed, `test_rendering`
compares the two. What of a kustomization is not known here is an error, so that no test passes on
less than what is deployed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"

Manifest = dict[str, Any]
_KEYS = {"apiVersion", "kind", "resources", "components", "patches", "images"}


def overlays() -> list[Path]:
    """List what can be deployed: the base and each overlay."""
    return [KUBERNETES / "base", *sorted((KUBERNETES / "overlays").iterdir())]


def render(folder: Path) -> list[Manifest]:
    """Give the manifests that a kustomization makes."""
    return _apply(folder, [])


def find(manifests: list[Manifest], kind: str, name: str = "ditcast") -> Manifest:
    """Give the one manifest of this kind and name."""
    [found] = _targets(manifests, {"kind": kind, "name": name})
    return found


def _apply(folder: Path, manifests: list[Manifest]) -> list[Manifest]:
    """Add a folder's resources to what is there, and patch all of it."""
    [kustomization] = _read(folder / "kustomization.yaml")
    assert kustomization.keys() <= _KEYS, f"{folder} asks for what is not known here"
    manifests = [*manifests, *_resources(folder, kustomization)]
    for component in kustomization.get("components", []):
        manifests = _apply(folder / component, manifests)
    for patch in kustomization.get("patches", []):
        assert patch.keys() == {"target", "patch"}
        targets = _targets(manifests, patch["target"])
        assert targets, f"{folder} patches {patch['target']}, which is not there"
        content = yaml.safe_load(patch["patch"])
        if isinstance(content, dict):
            manifests = _without(manifests, content)
            continue
        for target in targets:
            for operation in content:
                _change(target, **operation)
    for image in kustomization.get("images", []):
        assert image.keys() == {"name", "newTag"}
        for container in containers(manifests):
            if container["image"] == image["name"]:
                container["image"] = f"{image['name']}:{image['newTag']}"
    return manifests


def _resources(folder: Path, kustomization: Manifest) -> Iterator[Manifest]:
    for name in kustomization.get("resources", []):
        path = folder / name
        yield from render(path) if path.is_dir() else _read(path)


def _read(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def _targets(manifests: list[Manifest], target: dict[str, str]) -> list[Manifest]:
    assert target.keys() == {"kind", "name"}
    return [
        each
        for each in manifests
        if each["kind"] == target["kind"] and each["metadata"]["name"] == target["name"]
    ]


def _without(manifests: list[Manifest], patch: Manifest) -> list[Manifest]:
    """Leave out what a strategic merge patch deletes whole, which is all that it may do here."""
    assert patch.keys() == {"$patch", "apiVersion", "kind", "metadata"}
    assert patch["$patch"] == "delete"
    assert patch["metadata"].keys() == {"name"}
    gone = find(manifests, patch["kind"], patch["metadata"]["name"])
    assert gone["apiVersion"] == patch["apiVersion"]
    return [each for each in manifests if each is not gone]


def containers(part: Any) -> Iterator[Manifest]:  # noqa: ANN401 (a tree)
    """List the containers of whatever kind has some, at any depth, as kustomize finds them."""
    if isinstance(part, list):
        for each in part:
            yield from containers(each)
    elif isinstance(part, dict):
        for name, value in part.items():
            yield from value if name == "containers" else containers(value)


def _change(target: Any, *, op: str, path: str, value: Any = None) -> None:  # noqa: ANN401 (a tree)
    """Do one operation of a JSON patch (RFC 6902)."""
    *way, last = [part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/")]
    for part in way:
        target = target[int(part)] if isinstance(target, list) else target[part]
    if isinstance(target, list):
        _in_list(target, op, last)(copy.deepcopy(value))
        return
    assert op == "add" or last in target, f"nothing at {path} to {op}"
    if op == "remove":
        del target[last]
        return
    assert op in ("add", "replace"), op
    target[last] = copy.deepcopy(value)


def _in_list(target: list[Any], op: str, last: str) -> Callable[[Any], None]:
    if op == "add":
        return lambda value: target.insert(len(target) if last == "-" else int(last), value)
    assert op == "replace", op
    return lambda value: target.__setitem__(int(last), value)
