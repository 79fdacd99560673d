"""Which parameters of a pipeline take pictures: from its annotations and names, never from a list.

Annotations are read as text, because pipelines spell them in many ways, some of them unresolved.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ditcast_runtime.messages import ParameterKind

_PICTURE = re.compile(r"PIL\.Image|PipelineImageInput")
_LISTED = re.compile(r"(?:list|List|tuple|Tuple)\[(?:[^\[\]]|\[[^\[\]]*\])*\]")
_NAMED = re.compile(r"(?:^|_)(?:image|mask)$")
"""Names of parameters that take a picture though only a tensor is annotated, as in FLUX Fill."""


class ImageParameter(NamedTuple):
    """How a parameter takes pictures."""

    kind: ParameterKind
    required: bool


def image_parameters(pipe: object) -> dict[str, ImageParameter]:
    """Find them, in the order of the signature."""
    signature = inspect.signature(type(pipe).__call__)
    several = _takes_several(type(pipe))
    found = {}
    for name, parameter in signature.parameters.items():
        text = inspect.formatannotation(parameter.annotation)
        if not _takes_pictures(name, text):
            continue
        listed = not _PICTURE.search(_LISTED.sub("", text)) and _PICTURE.search(text)
        kind = ParameterKind.IMAGE_LIST if listed or (several and name == "image") else None
        required = _is_required(type(pipe), parameter, text)
        found[name] = ImageParameter(kind or ParameterKind.IMAGE, required)
    if {"image", "video"} <= found.keys():
        # One or the other: the pipeline's own check says when both are missing.
        found |= {name: found[name]._replace(required=False) for name in ("image", "video")}
    return found


def _takes_pictures(name: str, annotation: str) -> bool:
    if "latent" in name or "embed" in name:
        return False
    tensor = "Tensor" in annotation and _NAMED.search(name) and "attention" not in name
    return bool(_PICTURE.search(annotation) or tensor)


def _takes_several(pipeline: type) -> bool:
    """Say whether a list of pictures is several of one request, and not one for each prompt.

    The signature of the call says the same of both. Where it is several, the pipeline's own methods
    for them take `images`.
    """
    methods = inspect.getmembers(pipeline, inspect.isfunction)
    return any(
        name.startswith("prepare") and "images" in inspect.signature(method).parameters
        for name, method in methods
    )


def _is_required(pipeline: type, parameter: inspect.Parameter, annotation: str) -> bool:
    """Say whether a pipeline cannot do without: not all of them say so by having no default."""
    if parameter.default is inspect.Parameter.empty:
        return True
    if parameter.default is not None:
        return False
    # Older pipelines annotate no None and yet default to it; newer ones annotate it in any case.
    said = not re.search(r"None|Optional", annotation)
    return said or _Unguarded.use(inspect.unwrap(pipeline.__call__), parameter.name)


class _Unguarded(ast.NodeVisitor):
    """Looks whether a function uses an attribute or item of a parameter that may be None."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._settled = False
        self.found = False

    @classmethod
    def use(cls, function: Callable[..., object], name: str) -> bool:
        """Say whether it does so, where its source can be had."""
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, TypeError):
            return False
        visitor = cls(name)
        visitor.visit(tree)
        return visitor.found

    def visit_If(self, node: ast.If) -> None:
        """Pass over what depends on whether it is None."""
        self._visit_branches(node.test, node.body, node.orelse)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        """Pass over what depends on whether it is None."""
        self._visit_branches(node.test, [node.body], [node.orelse])

    def visit_Assign(self, node: ast.Assign) -> None:
        """Look no further once the name stands for something else."""
        self.visit(node.value)
        assigned = [part for target in node.targets for part in ast.walk(target)]
        self._settled = self._settled or any(self._is_it(part) for part in assigned)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Take note of `name.x`."""
        self._take(node.value)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Take note of `name[x]`."""
        self._take(node.value)

    def _visit_branches(
        self, test: ast.expr, body: Sequence[ast.AST], orelse: Sequence[ast.AST]
    ) -> None:
        if self._asks(test):
            return
        # Where it is of some type it is not None; where it is not, it may be.
        known = any(self._is_type_test(node) for node in ast.walk(test))
        for node in orelse if known else (test, *body, *orelse):
            self.visit(node)

    def _is_type_test(self, node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "isinstance"
            and self._is_it(node.args[0])
        )

    def _take(self, value: ast.expr) -> None:
        self.found = self.found or (self._is_it(value) and not self._settled)
        self.visit(value)

    def _asks(self, test: ast.expr) -> bool:
        return any(
            isinstance(node, ast.Compare)
            and isinstance(node.ops[0], (ast.Is, ast.IsNot))
            and self._is_it(node.left)
            for node in ast.walk(test)
        )

    def _is_it(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Name) and node.id == self._name
