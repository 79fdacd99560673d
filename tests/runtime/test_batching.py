"""What can share a call, what its rows start from, and whether a pipeline makes them as alone."""

from __future__ import annotations

import dataclasses
import inspect
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline
from diffusers.utils.torch_utils import randn_tensor
from tests.runtime.fleet_of_fakes import running, settled
from tests.runtime.making import PARAMETERS, generation
from tests.runtime.test_placement import loaded

from ditcast_runtime.accepted import Generation
from ditcast_runtime.arguments import batched_arguments, call_arguments
from ditcast_runtime.batch_trial import batch_fault
from ditcast_runtime.batching import batch_key
from ditcast_runtime.change import Change
from ditcast_runtime.config import EngineConfig
from ditcast_runtime.errors import GenerationCancelled, RanksLost
from ditcast_runtime.events import Restarted
from ditcast_runtime.generation import AdapterUse, OutputFormat, OutputOptions, State
from ditcast_runtime.ledger import Ledger
from ditcast_runtime.messages import Failed, FailureKind
from ditcast_runtime.recovery import verdict
from ditcast_runtime.settings import CacheSettings, DBCache, LoadingSettings

SHORT = dataclasses.replace(
    PARAMETERS,
    negative_prompt=" ",
    true_cfg_scale=3.0,
    width=64,
    height=64,
    num_inference_steps=2,
)


def made_of(**changed: Any) -> Generation:  # noqa: ANN401 (fields of parameters)
    """Make a generation whose parameters differ from the others' in these."""
    return generation(parameters=dataclasses.replace(PARAMETERS, **changed))


def test_prompts_seeds_and_forms_are_each_ones_own() -> None:
    """None of them is in the key, and neither are priorities, clients and time limits."""
    others = (
        made_of(prompt="another", seed=8),
        made_of(output=OutputOptions(format=OutputFormat.JPEG, quality=3)),
        generation(client="another", timeout=5.0),
    )
    assert {batch_key(each) for each in others} == {batch_key(generation())}


@pytest.mark.parametrize(
    "changed",
    [
        {"width": 64},
        {"num_inference_steps": 5},
        {"sigmas": (1.0, 0.5)},
        {"guidance_scale": 2.0},
        {"true_cfg_scale": 2.0},
        {"negative_prompt": ""},
        {"num_frames": 5},
        {"cache": CacheSettings(method=DBCache())},
        {"adapters": (AdapterUse(name="style", weight=1.0, weights_digest="ab"),)},
        {"output": OutputOptions(format=OutputFormat.LATENT_SAFETENSORS)},
        {"pipeline_kwargs": {"max_sequence_length": 64}},
    ],
)
def test_what_a_call_has_once_must_be_equal(changed: dict[str, Any]) -> None:
    """A difference in any of these is another call, and the same in it is the same call."""
    assert batch_key(made_of(**changed)) != batch_key(generation())
    assert batch_key(made_of(**changed)) == batch_key(made_of(**changed, seed=9)) is not None


def test_some_run_alone() -> None:
    """Several pictures, arguments that may be a row's own, what is compared, and whoever failed."""
    failed = generation()
    failed.alone = True
    for each in (
        made_of(num_images=2),
        made_of(pipeline_kwargs={"prompt_2": "more"}),
        generation(shadow_comparison=True),
        generation(keeps_result=False),
        failed,
    ):
        assert batch_key(each) is None


def test_each_row_starts_from_the_noise_that_it_has_alone() -> None:
    """To the bit, with diffusers' own way to draw it; and one alone is called as ever."""
    signature = inspect.signature(QwenImagePipeline.__call__)
    batch = [dataclasses.replace(SHORT, seed=seed) for seed in (3, 2**64 - 1, 5)]
    together = batched_arguments(signature, batch)
    noise = randn_tensor((3, 16, 8, 8), generator=together["generator"])
    for row, parameters in zip(noise, batch, strict=True):
        own = call_arguments(signature, parameters)["generator"]
        assert torch.equal(row, randn_tensor((1, 16, 8, 8), generator=own)[0])
    assert together["negative_prompt"] == [" "] * 3
    alone = batched_arguments(signature, batch[:1])
    assert (alone["prompt"], alone["negative_prompt"]) == (SHORT.prompt, " ")
    assert not isinstance(alone["generator"], list)


def test_a_pipeline_that_makes_rows_otherwise_is_found_out() -> None:
    """The embedded one can share calls; without the mask of its padding, or of one prompt, not."""
    pipeline = loaded(LoadingSettings())
    pipe = pipeline.pipe
    assert batch_fault(pipeline, SHORT, latents=True) == ""
    assert batch_fault(pipeline, SHORT, latents=False) == ""
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda *args, **kwargs: (encode(*args, **kwargs)[0], None)
    assert "differs by" in batch_fault(pipeline, SHORT, latents=True)

    def encode_one(prompt: str | list[str], **kwargs: Any) -> Any:  # noqa: ANN401 (tensors)
        if isinstance(prompt, list):
            raise TypeError("one prompt only")
        return encode(prompt, **kwargs)

    pipe.encode_prompt = encode_one
    assert "one prompt only" in batch_fault(pipeline, SHORT, latents=True)


async def test_those_that_wait_and_are_alike_go_in_one_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In the queue's own order, so many as are allowed; one that differs keeps its place."""
    other = dataclasses.replace(PARAMETERS, width=64)
    async with running(monkeypatch, tmp_path, groups=1, max_batch_size=3) as made:
        await made.submit("a")
        await made.submit("b", parameters=other)
        await made.submit("c", "d", "e", "f")
        [fake] = made.fakes.made
        fake.free.set()
        await settled()
        assert fake.batches == [["a"], ["b"], ["c", "d", "e"], ["f"]]


async def test_groups_that_are_idle_share_what_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One does not take all while the other has nothing to do; once one is busy, it does."""
    async with running(monkeypatch, tmp_path, groups=2, max_batch_size=4) as made:
        await made.submit("a", "b", "c", "d")
        assert sorted(fake.batches for fake in made.fakes.made) == [[["a", "b"]], [["c", "d"]]]
        await made.submit("e", "f", "g")
        first, _ = made.fakes.with_run("a")
        first.free.set()
        await settled()
        assert first.batches[1:] == [["e", "f", "g"]]


async def test_one_that_is_next_waits_for_company(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Until there are enough, its time is up, or the server drains; another kind ends no wait."""
    config: dict[str, Any] = {"groups": 1, "max_batch_size": 2, "max_batch_wait": 30.0}
    async with running(monkeypatch, tmp_path, **config) as made:
        [fake] = made.fakes.made
        await made.submit("a")
        assert fake.batches == []
        await made.submit("other", parameters=dataclasses.replace(PARAMETERS, width=64))
        assert fake.batches == []
        await made.submit("b")
        assert fake.batches == [["a", "b"]]
        fake.free.set()
        await settled()
        assert fake.batches == [["a", "b"]]
        made.groups.drain()
        await settled()
        assert fake.batches == [["a", "b"], ["other"]]


async def test_whoever_has_waited_long_enough_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The wait counts from the acceptance, so that a full queue adds nothing to it."""
    config: dict[str, Any] = {"groups": 1, "max_batch_size": 2, "max_batch_wait": 30.0}
    async with running(monkeypatch, tmp_path, **config) as made:
        [waiting] = await made.submit("a")
        waiting.accepted_at = time.monotonic() - 31.0
        made.ledger.work.set()
        await settled()
        assert made.fakes.made[0].batches == [["a"]]


async def test_a_change_is_made_while_one_waits_for_company(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing runs, so nothing is in its way; what was settled before then runs alone."""
    config: dict[str, Any] = {"groups": 1, "max_batch_size": 2, "max_batch_wait": 30.0}
    async with running(monkeypatch, tmp_path, **config) as made:
        await made.submit("a")
        current = made.configurations[-1]
        cache = CacheSettings(method=DBCache())
        change, answered = made.propose(dataclasses.replace(current, cache=cache))
        assert isinstance(change, Change)
        await answered
        await settled()
        assert made.fakes.made[0].batches == [["a"]]


async def test_of_a_lost_batch_all_begin_again_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In their order, before all others, and with one attempt less."""
    config: dict[str, Any] = {"groups": 1, "max_batch_size": 3, "max_batch_wait": 30.0}
    async with running(monkeypatch, tmp_path, **config) as made:
        batch = await made.submit("a", "b", "c")
        [fake] = made.fakes.made
        assert fake.batches == [["a", "b", "c"]]
        made.ledger.cancel(batch[1])
        assert fake.left == {1}
        assert not fake.free.is_set()
        await made.submit("later", parameters=dataclasses.replace(PARAMETERS, width=64))
        fake.lose()
        await settled()
        again = made.fakes.of(0)
        assert batch[0].state is State.RUNNING
        again.free.set()
        await settled()
        assert again.batches == [["a"], ["c"]]
        for each in (batch[0], batch[2]):
            kinds = await made.events(each)
            assert [kind.attempt for kind in kinds if isinstance(kind, Restarted)] == [2]


async def test_no_explanation_ends_a_whole_batch(tmp_path: Path) -> None:
    """Out of memory ends one that ran alone; of a batch each shows by itself whether it is."""
    ledger = Ledger(EngineConfig(), tmp_path, lambda _: None)
    one = ledger.admit(generation().submission)
    failure = Failed(
        epoch=1,
        number=1,
        rank=0,
        step=1,
        kind=FailureKind.OUT_OF_MEMORY,
        error_type="OutOfMemoryError",
        message="no",
    )
    lost = RanksLost(1, "killed", timedelta())
    assert verdict(one, [failure], 1, 2, lost) is not None
    one.batch_size = 2
    assert verdict(one, [failure], 1, 2, lost) is None
    ledger.end(one, GenerationCancelled(0))
