"""Whose fault an exception on a rank is: by its type, by when it came, and what it names."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.runtime.making import PARAMETERS
from tests.runtime.test_placement import launch_with

from ditcast_runtime.errors import ConfigError
from ditcast_runtime.execution import Execution, failure_kind, refused_field
from ditcast_runtime.generation import ImageRole, ImageUse
from ditcast_runtime.messages import FailureKind
from ditcast_runtime.outputs import NotFinite
from ditcast_runtime.settings import LoadingSettings
from ditcast_runtime.warm_up import _run

SIZES = RuntimeError("The size of tensor a (2) must match the output of tensor b (1)")
LAST = ImageUse(
    role=ImageRole.LAST_FRAME,
    parameter="last_image",
    width=1,
    height=1,
    mode="RGB",
    size_bytes=1,
    sha256=b"",
)
WITH_PICTURE = dataclasses.replace(PARAMETERS, images=(LAST,))
WITH_ARGUMENT = dataclasses.replace(PARAMETERS, pipeline_kwargs={"strength": 1e30})


def doubtful(steps: int, parameters: Any) -> bool:  # noqa: ANN401 (of a request)
    """Say what a rank says of a failure after so many steps."""
    execution: Any = object.__new__(Execution)
    execution.steps = steps
    execution.command = SimpleNamespace(parameters=parameters)
    execution._pictures = {use.parameter: [] for use in parameters.images}
    return bool(Execution.doubtful.__get__(execution))


@pytest.mark.parametrize("parameters", [WITH_PICTURE, WITH_ARGUMENT], ids=["picture", "argument"])
def test_what_the_pipeline_alone_can_judge_is_refused_until_a_step_is_done(parameters: Any) -> None:  # noqa: ANN401
    """A last frame for a model that was not trained for one fails in the first step: no bug."""
    assert doubtful(0, parameters)
    assert not doubtful(1, parameters)
    for error in (SIZES, IndexError("0"), ZeroDivisionError(), AttributeError("shape")):
        assert failure_kind(error, prepared=True, doubtful=True) is FailureKind.REFUSED
        assert failure_kind(error, prepared=True, doubtful=False) is FailureKind.FAILED


def test_without_either_it_is_a_bug() -> None:
    """Whatever else a request holds was checked beforehand."""
    assert not doubtful(0, PARAMETERS)


def test_what_has_a_kind_of_its_own_keeps_it() -> None:
    """Too little memory is no refusal, nor is what puts out NaN."""
    kinds = {
        torch.OutOfMemoryError(): FailureKind.OUT_OF_MEMORY,
        MemoryError(): FailureKind.OUT_OF_MEMORY,
        NotFinite(): FailureKind.NAN_OUTPUT,
    }
    for error, kind in kinds.items():
        assert failure_kind(error, prepared=True, doubtful=True) is kind


def test_a_refusal_names_what_it_can_be_about() -> None:
    """Words of a check are fields; of an error about tensors they are not."""
    assert refused_field(SIZES, WITH_PICTURE) == "images"
    assert refused_field(SIZES, WITH_ARGUMENT) == "pipeline_kwargs"
    assert refused_field(RuntimeError("bad strength"), WITH_ARGUMENT) == "pipeline_kwargs.strength"
    assert refused_field(ValueError("`width` is odd"), WITH_PICTURE) == "width"


class Broken:
    """A pipeline that cannot run."""

    signature = SimpleNamespace(parameters={})
    accelerator = SimpleNamespace(transformers=())

    def blanks(self, width: int, height: int) -> dict[str, Any]:  # noqa: ARG002
        """Give no pictures."""
        return {}

    def run(self, *_: object) -> None:
        """Fail as pipelines do at sizes that they were not made for."""
        raise SIZES


@pytest.mark.parametrize("field", ["model", "warm_up"])
def test_what_fails_in_the_warm_up_is_named(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator reads which setting is at fault, and does not get a traceback alone."""
    monkeypatch.setattr("ditcast_runtime.warm_up.call_arguments", lambda *_: {})
    broken: Any = Broken()
    launch, found = launch_with(LoadingSettings()), SimpleNamespace(dtype="float32")
    with pytest.raises(ConfigError) as refused:
        _run(broken, PARAMETERS, launch, found, field=field)  # type: ignore[arg-type]
    [problem] = refused.value.problems
    assert problem.field == field
    assert "128x128" in problem.reason
    # Of several ranks another one may have failed, and later ranks run what ran before.
    for changed in ({"world_size": 2}, {"epoch": 2}):
        later: Any = SimpleNamespace(**{**_fields(launch), **changed})
        with pytest.raises(RuntimeError, match="size of tensor"):
            _run(broken, PARAMETERS, later, found, field=field)  # type: ignore[arg-type]


def _fields(launch: Any) -> dict[str, Any]:  # noqa: ANN401 (a struct)
    return {name: getattr(launch, name) for name in launch.__struct_fields__}
