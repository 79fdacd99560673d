"""The kinds that differ most: a picture in, joined lists, two transformers, no callback, a UNet.

And what one of them alone does: it renders at a size of its own choice, and cuts that to what was
asked for.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.kinds.builders.images import pixart_sigma
from tests.kinds.conftest import Models
from tests.kinds.kinds import BY_NAME, KINDS, Kind
from tests.kinds.showing import show
from tests.kinds.table import PATH, title
from tests.runtime.making import PARAMETERS

from ditcast_runtime.generation import PreviewOptions
from ditcast_runtime.previews.clean import StepCall, tapped
from ditcast_runtime.previews.lesson import Lesson

SOME = ("qwen_image_edit", "flux", "wan_2_2", "pixart_sigma", "stable_diffusion_xl")
SHARED = "flux"
"""The one that two ranks share as well."""


@pytest.mark.parametrize("kind", [BY_NAME[name] for name in SOME], ids=lambda kind: kind.name)
async def test_the_kind_is_served_as_a_direct_call_makes_it(
    kind: Kind, models: Models, tmp_path: Path
) -> None:
    """Same bytes on one rank, within 1e-3 on two, a third of the steps cached, left at once."""
    await show(kind, models, tmp_path, two_ranks=kind.name == SHARED)


# diffusers hands torch tensors to numpy in the way of numpy 1.
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.parametrize(("width", "height"), [(128, 96), (128, 32), (64, 64)])
def test_a_size_of_the_pipelines_own_choice_has_previews(width: int, height: int) -> None:
    """In the shape of the output, though the latents are those of another one."""
    pipe: Any = pixart_sigma()
    pipe.set_progress_bar_config(disable=True)
    lesson = Lesson(pipe, torch.device("cpu"), parallel_vae=False)
    calls: list[StepCall] = []

    def run(*, binning: bool) -> Any:  # noqa: ANN401 (diffusers says no types)
        more = {"max_sequence_length": 48, "clean_caption": False, "output_type": "pt"}
        kwargs = {**more, "use_resolution_binning": binning}
        return pipe("a", width=width, height=height, num_inference_steps=2, **kwargs).images

    with lesson.watching():
        run(binning=False)
    previewer = lesson.previewer()
    assert previewer is not None
    with tapped(pipe.scheduler, calls.append):
        output = run(binning=True)
    assert output.shape[2:] == (height, width) != tuple(8 * s for s in calls[-1].sample.shape[2:])
    parameters = dataclasses.replace(PARAMETERS, width=width, height=height)
    picture = previewer.draw(calls[-1], parameters, PreviewOptions(every_n_steps=1, max_side=64))
    assert picture is not None
    assert picture.shape == (1, 64 * height // width, 64, 3)


def test_the_table_in_the_docs_has_every_kind() -> None:
    """Write it anew with `make test-kinds`, which shows what it says."""
    written = PATH.read_text("utf-8")
    missing = [kind.name for kind in KINDS if f"| {title(kind)} |" not in written]
    assert missing == []
