"""Each way of splitting the pipeline, on real ranks: one rank's picture, and a share of its work.

Every picture is cached, so that the ranks' decisions are compared as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from tests.options.proofs import proves
from tests.options.ranks import Order, Report

from ditcast_runtime.settings import ParallelismSettings as Split

Ranks = Callable[[Order], list[Report]]

IMAGE_TOKENS = 16
PROMPT_TOKENS = 8
HEADS = 4
WEIGHTS = 64 * 64
TEXT_WEIGHTS = 128 * 128
TILES = 9
CLOSE = 1e-4


@pytest.fixture(scope="module")
def alone(ranks: Ranks) -> Callable[..., Report]:
    """Give what one rank makes of an order; each is carried out once."""
    known: dict[Order, Report] = {}

    def run(**options: object) -> Report:
        order = Order(world_size=1, **options)  # type: ignore[arg-type]
        if order not in known:
            [known[order]] = ranks(order)
        assert known[order].error == ""
        return known[order]

    return run


def split(ranks: Ranks, world_size: int, settings: Split, **options: object) -> list[Report]:
    """Carry out an order on ranks that must not fail."""
    order = Order(world_size=world_size, parallelism=settings, **options)  # type: ignore[arg-type]
    reports = ranks(order)
    assert [report.error for report in reports] == [""] * world_size
    return reports


def apart(report: Report, other: Report) -> float:
    """Give the largest difference between two outputs."""
    pairs = zip(report.output, other.output, strict=True)
    return max(abs(one - two) for one, two in pairs)


def expect_same(reports: Iterable[Report], one: Report) -> None:
    """Hold every rank to the picture and the decisions of one rank."""
    for report in reports:
        assert apart(report, one) < CLOSE
        assert report.cached == one.cached == [3, 4, 5, 6]
        assert report.cfg_cached == one.cfg_cached == [3, 4, 5, 6]
        assert report.diffs == pytest.approx(one.diffs, abs=CLOSE)


@proves("parallelism.ulysses_degree", "parallelism.backend")
def test_plain_ulysses_gives_each_rank_half_of_the_tokens_and_of_the_heads(
    ranks: Ranks, alone: Callable[..., Report]
) -> None:
    """Outside of attention a rank has half of the tokens, inside half of the heads."""
    settings = Split(ulysses_degree=2, ulysses_anything=False, backend="Native_Diffuser")
    reports = split(ranks, 2, settings)
    expect_same(reports, alone())
    assert alone().tokens == [IMAGE_TOKENS]
    assert alone().attention == [(HEADS, IMAGE_TOKENS + PROMPT_TOKENS)]
    for report in reports:
        assert report.tokens == [IMAGE_TOKENS // 2]
        assert report.attention == [(HEADS // 2, IMAGE_TOKENS + PROMPT_TOKENS)]


@proves("parallelism.ulysses_anything")
def test_only_ulysses_anything_takes_prompts_that_two_ranks_cannot_halve(
    ranks: Ranks, alone: Callable[..., Report]
) -> None:
    """9 tokens: plain Ulysses stops, and with the option the picture is that of one rank."""
    odd = {"prompt": "a red circle on"}
    plain = Split(ulysses_degree=2, ulysses_anything=False)
    for report in ranks(Order(world_size=2, parallelism=plain, **odd)):  # type: ignore[arg-type]
        assert "must be divisible by mesh size" in report.error
    reports = split(ranks, 2, Split(ulysses_degree=2, ulysses_anything=True), **odd)
    expect_same(reports, alone(**odd))


@proves("parallelism.ulysses_async", "parallelism.extra_parallel_kwargs")
def test_asynchronous_ulysses_exchanges_the_attention_and_keeps_the_picture(
    ranks: Ranks, alone: Callable[..., Report]
) -> None:
    """cache-dit's overlapping attention is in place; extra options arrive beside it."""
    settings = Split(
        ulysses_degree=2,
        ulysses_async=True,
        backend="CACHE_DIT",
        extra_parallel_kwargs=(("an_option", False),),
    )
    reports = split(ranks, 2, settings)
    expect_same(reports, alone())
    assert not alone().asynchronous
    for report in reports:
        assert report.asynchronous
        assert report.extra == {"an_option": False}


@proves(
    "parallelism.tensor_parallel_degree", "parallelism.backend", "parallelism.attention_backend"
)
def test_tensor_parallelism_gives_each_rank_half_of_the_weights(
    ranks: Ranks, alone: Callable[..., Report]
) -> None:
    """All tokens, half of the heads; with an attention implementation of its own."""
    settings = Split(
        tensor_parallel_degree=2, backend="Native_PyTorch", attention_backend="_native_math"
    )
    reports = split(ranks, 2, settings)
    expect_same(reports, alone())
    assert alone().weights == WEIGHTS
    assert alone().backends == []
    for report in reports:
        assert report.weights == WEIGHTS // 2
        assert report.tokens == [IMAGE_TOKENS]
        assert report.attention == [(HEADS // 2, IMAGE_TOKENS + PROMPT_TOKENS)]
        assert report.backends == ["_native_math"]


@proves("parallelism.ring_degree", "parallelism.ring_rotate_method", "parallelism.backend")
def test_a_ring_gives_each_rank_half_of_the_tokens_and_all_heads(
    ranks: Ranks, alone: Callable[..., Report]
) -> None:
    """Keys and values come round from the other rank, point to point."""
    reports = split(ranks, 2, Split(ring_degree=2, ring_rotate_method="p2p", backend="cache_dit"))
    expect_same(reports, alone())
    for report in reports:
        assert report.tokens == [IMAGE_TOKENS // 2]
        # The parts go through another operator, which tells its log-sum-exp.
        assert report.attention == []


@proves("parallelism.ring_convert_to_fp32")
def test_a_ring_of_bfloat16_accumulates_in_the_precision_that_it_is_told(ranks: Ranks) -> None:
    """In 32 bits the picture differs from that in 16, on both ranks alike."""
    precise, coarse = (
        split(ranks, 2, Split(ring_degree=2, ring_convert_to_fp32=convert), dtype="bfloat16")
        for convert in (True, False)
    )
    assert precise[0].output == precise[1].output
    assert coarse[0].output == coarse[1].output
    assert 0 < apart(precise[0], coarse[0]) < 1


@proves(
    "parallelism.extra_parallel_modules: text_encoder", "parallelism.extra_parallel_modules: vae"
)
def test_text_encoder_and_vae_are_split_too(ranks: Ranks, alone: Callable[..., Report]) -> None:
    """Each rank holds half of the text encoder's weights and decodes half of the tiles."""
    settings = Split(ulysses_degree=2, extra_parallel_modules=("text_encoder", "vae"))
    reports = split(ranks, 2, settings, decode=True)
    one = alone(decode=True)
    expect_same(reports, one)
    assert (one.text_weights, one.tiles) == (TEXT_WEIGHTS, TILES)
    assert [report.text_weights for report in reports] == [TEXT_WEIGHTS // 2] * 2
    assert [report.tiles for report in reports] == [5, 4]


@proves("parallelism.extra_parallel_modules: controlnet")
def test_a_controlnet_is_split_too(ranks: Ranks, alone: Callable[..., Report]) -> None:
    """Z-Image's, the only one that cache-dit has a plan for: the latents are those of one rank."""
    settings = Split(
        ulysses_degree=2, ulysses_anything=False, extra_parallel_modules=("controlnet",)
    )
    for report in split(ranks, 2, settings, controlnet=True):
        assert apart(report, alone(controlnet=True)) < CLOSE


@proves("parallelism.ulysses_anything: heads padded")
def test_three_ranks_share_five_heads(ranks: Ranks, alone: Callable[..., Report]) -> None:
    """One head is made up, so that each rank has two; a width of 96 gives tokens for three."""
    options = {"heads": 5, "width": 96}
    reports = split(ranks, 3, Split(ulysses_degree=3), **options)
    expect_same(reports, alone(**options))
    assert {heads for report in reports for heads, _ in report.attention} <= {1, 2}


MIXES = {
    "ulysses x tensor": Split(ulysses_degree=2, tensor_parallel_degree=2, backend="Native_Hybrid"),
    "ring x tensor": Split(ring_degree=2, tensor_parallel_degree=2),
    "ulysses x ring": Split(ulysses_degree=2, ring_degree=2),
    "ulysses x ring x tensor": Split(ulysses_degree=2, ring_degree=2, tensor_parallel_degree=2),
}


@proves(*(f"parallelism: {mix}" for mix in MIXES), "parallelism.backend")
@pytest.mark.parametrize("mix", MIXES)
def test_mixes_give_each_rank_its_share_in_each_direction(
    ranks: Ranks, alone: Callable[..., Report], mix: str
) -> None:
    """Tokens over Ulysses and the ring, weights over the tensor dimension; 4 ranks, or 8."""
    settings = MIXES[mix]
    reports = split(ranks, settings.world_size, settings)
    expect_same(reports, alone())
    for report in reports:
        assert report.tokens == [IMAGE_TOKENS // settings.context_parallel_degree]
        assert report.weights == WEIGHTS // settings.tensor_parallel_degree
