"""Runs the small pipeline on several ranks: a process that imports torch once and forks each rank.

Run as `python -m tests.options.ranks`; takes one `Order` a line and gives one list of `Report`s,
rank by rank. Until it forks it has no threads, so that the ranks may have theirs.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cache_dit.utils
import msgspec
import torch
from cache_dit.distributed.async_ulysses import AsyncUlyssesRegistry
from tests.options import control, running, tiny
from torch import distributed
from torch.nn import functional

from ditcast_runtime.settings import (
    Acceleration,
    CacheSettings,
    DBCache,
    ParallelismSettings,
    resolve_parallelism,
)

CACHED = CacheSettings(
    method=DBCache(fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.99)
)
STEPS = 6
RANK_SECONDS = 200
"""After which a rank that hangs is killed."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a group of ranks is to do."""

    world_size: int
    parallelism: ParallelismSettings | None = None
    heads: int = tiny.HEADS
    prompt: str = running.PROMPT
    width: int = tiny.SIDE
    dtype: str = "float32"
    decode: bool = False
    """Whether to decode, in tiles, rather than to stop at the latents."""
    controlnet: bool = False
    """Whether to run a pipeline with a ControlNet instead, which does not cache."""


class Report(msgspec.Struct, kw_only=True):
    """What one rank saw."""

    error: str = ""
    output: list[float] = []
    computed: list[int] = []
    cached: list[int] = []
    cfg_cached: list[int] = []
    diffs: list[float | None] = []
    tokens: list[int] = []
    """Image tokens that the second block was given, each number once."""
    attention: list[tuple[int, int]] = []
    """Heads and tokens of the queries that the transformer's attention was given."""
    weights: int = 0
    """Elements of the first query projection that this rank holds."""
    text_weights: int = 0
    """As `weights`, of the text encoder."""
    tiles: int = 0
    """Tiles that this rank decoded."""
    backends: list[str] = []
    """Attention implementations of the transformer."""
    asynchronous: bool = False
    """Whether cache-dit exchanged the transformer's attention for one that overlaps."""
    extra: dict[str, Any] = {}
    """The extra options that arrived at the context parallelism of the transformer."""


def _observe(pipe: Any, report: Report) -> None:
    """Note in the report what passes by."""

    def second_block(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states: Any = kwargs.get("hidden_states", args[0] if args else None)
        if states.shape[1] not in report.tokens:
            report.tokens.append(states.shape[1])

    def decoder(*_: Any) -> None:
        report.tiles += 1

    blocks = pipe.transformer.transformer_blocks
    blocks[1].register_forward_pre_hook(second_block, with_kwargs=True)
    pipe.vae.decoder.register_forward_hook(decoder)
    _observe_attention(pipe.transformer, report)


def _observe_attention(transformer: torch.nn.Module, report: Report) -> None:
    """Note the shapes of queries, of the transformer alone."""
    inside = False
    original = functional.scaled_dot_product_attention

    def enter(*_: Any) -> None:
        nonlocal inside
        inside = True

    def leave(*_: Any) -> None:
        nonlocal inside
        inside = False

    def attention(*args: Any, **kwargs: Any) -> torch.Tensor:
        query: Any = kwargs.get("query", args[0] if args else None)
        shape = (query.shape[1], query.shape[2])
        if inside and shape not in report.attention:
            report.attention.append(shape)
        return original(*args, **kwargs)

    transformer.register_forward_pre_hook(enter)
    transformer.register_forward_hook(leave)
    functional.scaled_dot_product_attention = attention


def _local(weight: torch.Tensor) -> int:
    return int(getattr(weight, "_local_tensor", weight).numel())


def _look(pipe: Any, report: Report) -> None:
    """Note in the report how the pipeline stands after it ran."""
    attention = pipe.transformer.transformer_blocks[0].attn
    report.weights = _local(attention.to_q.weight)
    text = pipe.text_encoder.model.language_model.layers[0].self_attn
    report.text_weights = _local(text.q_proj.weight)
    backend = getattr(attention.processor, "_attention_backend", None)
    report.backends = [] if backend is None else [getattr(backend, "value", backend)]
    report.asynchronous = bool(AsyncUlyssesRegistry._patched_methods)
    config = getattr(pipe.transformer, "_cp_config", None)
    report.extra = dict(config.extra_kwargs) if config is not None else {}


def _run(order: Order) -> Report:
    """Be one rank."""
    report = Report()
    if order.controlnet:
        report.output = control.run(order.parallelism, order.world_size).flatten().tolist()
        return report
    pipe = tiny.pipeline(order.heads)
    pipe.to(getattr(torch, order.dtype))
    if order.decode:
        # So that a small picture has several tiles. One rank alone decodes in tiles as well.
        tiny.tile(pipe.vae)
    _observe(pipe, report)
    running.PROMPT, running.WIDTH = order.prompt, order.width
    bench = running.Bench(pipe, Acceleration(parallelism=order.parallelism), order.world_size)
    report.tiles = 0
    output_type = "pt" if order.decode else "latent"
    trace = bench.run(CACHED, STEPS, passes=2, output_type=output_type)
    report.output = trace.output.float().flatten().tolist()
    report.computed, report.cached = trace.computed, trace.cached
    report.cfg_cached, report.diffs = trace.cfg_cached, trace.diffs
    _look(pipe, report)
    return report


def _be(rank: int, order: Order, store: str) -> Report:
    try:
        if order.world_size > 1:
            distributed.init_process_group(
                "gloo", init_method=f"file://{store}", rank=rank, world_size=order.world_size
            )
        return _run(order)
    except Exception as error:  # noqa: BLE001 - whatever it is, the test is told
        traceback.print_exc()
        return Report(error=f"{type(error).__name__}: {error}")


def _fork(act: Callable[[], Report]) -> int:
    """Run something in a process of its own; give the pipe that its report comes through."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        signal.alarm(RANK_SECONDS)
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(msgspec.json.encode(act()))
        # Without the interpreter's teardown, in which gloo waits for ranks that are gone.
        os._exit(0)
    os.close(writer)
    return reader


def _group(order: Order) -> list[Report]:
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        ranks = range(order.world_size)
        readers = [_fork(lambda rank=rank: _be(rank, order, store)) for rank in ranks]  # type: ignore[misc]
        reports = []
        for reader in readers:
            with os.fdopen(reader, "rb") as pipe:
                content = pipe.read()
            died = Report(error="it died")
            reports.append(msgspec.json.decode(content, type=Report) if content else died)
        for _ in readers:
            os.wait()
    return reports


def main() -> None:
    """Serve orders until there are no more."""
    # The libraries print; the answers must stand alone.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    tiny.pipeline()
    # It waits 2 s for device memory to settle, each time that it splits something.
    cache_dit.utils.time.sleep = lambda _: None
    # What the ranks share is neither walked nor copied when they collect garbage.
    gc.freeze()
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=Order)
        if order.parallelism is not None:
            resolved = resolve_parallelism(order.parallelism, order.world_size)
            order = msgspec.structs.replace(order, parallelism=resolved)
        answers.write(msgspec.json.encode(_group(order)) + b"\n")


if __name__ == "__main__":
    main()
