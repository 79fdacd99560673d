"""What ranks on a CPU switch off of autograd, and for whom they do not."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from tests.runtime.test_placement import CPU, loaded, picture

from ditcast_runtime.acceleration import Accelerator
from ditcast_runtime.pipeline import Pipeline
from ditcast_runtime.settings import Acceleration, CacheSettings, LoadingSettings


class Plain(QwenImagePipeline):
    """Notes whether it runs in inference mode."""

    inferring = False

    @torch.no_grad()
    def __call__(self, *args: object, **kwargs: object) -> object:
        """Note it, and go on."""
        self.inferring = torch.is_inference_mode_enabled()
        return super().__call__(*args, **kwargs)


class Guided(Plain):
    """Wants a gradient on the way, as Attend-and-Excite does."""

    @torch.no_grad()
    def __call__(self, *args: object, **kwargs: object) -> object:
        """Take one, and go on."""
        with torch.enable_grad():
            weight = torch.ones(1, requires_grad=True)
            (2 * weight).sum().backward()
        assert weight.grad is not None
        assert weight.grad.item() == 2.0
        return super().__call__(*args, **kwargs)


SIGNATURE = inspect.signature(QwenImagePipeline.__call__)


@pytest.mark.parametrize(("kind", "inferring"), [(Plain, True), (Guided, False)])
def test_only_a_pipeline_that_wants_gradients_can_have_them(
    kind: type[Plain], *, inferring: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others run in inference mode, and the bytes are the same."""
    monkeypatch.setattr(kind.__call__, "__signature__", SIGNATURE, raising=False)
    torch.set_num_threads(1)
    ordinary = loaded(LoadingSettings())
    expected = picture(ordinary, CacheSettings())
    pipe = ordinary.pipe
    pipe.__class__ = kind
    pipeline = Pipeline(pipe, Accelerator(pipe, Acceleration(), 1, CPU), CPU)
    assert picture(pipeline, CacheSettings()) == expected
    assert pipe.inferring is inferring
