"""What cannot be served ends the start: with a message that names the field, and nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.distributed import shipped
from tests.distributed.servers import Server

from ditcast_runtime.config import STARTER_MODEL

WRONG = {
    "degrees that are not the world size": (
        ["--world-size", "3"],
        "parallelism_config: {ulysses_size: 2, tp_size: 1}",
        ["ulysses_degree 2", "= 2", "world size is 3"],
    ),
    "heads that the ranks cannot share": (
        ["--world-size", str(shipped.UNSHARED)],
        "",
        ["ulysses_degree", f"{shipped.HEADS} heads"],
    ),
    "more blocks than there are": (
        [],
        f"cache_config: {{Fn_compute_blocks: {shipped.BLOCKS + 1}}}",
        ["fn_compute_blocks", f"{shipped.BLOCKS + 1}", f"{shipped.BLOCKS} blocks"],
    ),
    "an unknown key": (
        [],
        "cache_config: {Fn_compute_block: 1}",
        ["cache_config.Fn_compute_block", "Fn_compute_blocks"],
    ),
    "two calibrators": (
        [],
        "cache_config: {enable_taylorseer: true, enable_foca: true}",
        ["cache_config.enable_", "only one calibrator"],
    ),
    "what needs an accelerator": (
        ["--world-size", "2", "--device", "cpu"],
        (
            "{parallelism_config: {ulysses_size: 2, ulysses_float8: true}, attention_backend: sage,"
            " quantize_config: {quant_type: int8_weight_only}}"
        ),
        ["parallelism.ulysses_float8", "attention_backend", "quantize.quant_type", "accelerator"],
    ),
    "blocks of a sharded sequence that shall be pruned": (
        ["--world-size", "2"],
        (
            "{parallelism_config: {ulysses_size: 2},"
            " cache_config: {cache_type: DBPrune, Fn_compute_blocks: 1}}"
        ),
        ["cache.db_prune", "context parallelism"],
    ),
    "a model that is none": (["--model", "."], "", ["--model", "model_index.json"]),
    "an unknown flag": (["--word-size", "2"], "", ["--word-size", "--world-size"]),
    "an address beyond this machine": (["--listen", "0.0.0.0:0"], "", ["--listen", "--insecure"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_served_is_said_before_a_rank_starts(what: str, tmp_path: Path) -> None:
    """The message names the field and the bound; the exit code says misuse."""
    flags, text, expected = WRONG[what]
    server = _start(tmp_path, flags, text)
    assert server.wait() == 2
    message = server.tail()
    assert "cannot start" in message
    for part in expected:
        assert part in message
    assert "ditcast_runtime" not in message
    server.expect_no_orphans()


def test_a_port_that_is_taken_is_said_at_once(server_one: Server, tmp_path: Path) -> None:
    """A second server on the same port, or the same socket, fails; the first goes on."""
    for address in server_one.addresses:
        server = Server(tmp_path, "--listen", address)
        assert server.wait() == 2
        assert address in server.tail()
        assert "is another server running there" in server.tail().lower()
        server.expect_no_orphans()


@pytest.mark.parametrize(
    ("degrees", "field"),
    [
        ("ulysses_size: 2, parallel_kwargs: {ulysses_anything: false}", "ulysses_anything"),
        ("ring_size: 2", "ring_degree"),
    ],
    ids=["plain Ulysses", "a ring"],
)
def test_sharding_that_prompts_of_any_length_would_break_is_refused(
    degrees: str, field: str, tmp_path: Path
) -> None:
    """Without `ulysses_anything` every second prompt would fail: the start does, and names it."""
    text = f"parallelism_config: {{{degrees}}}"
    server = _start(tmp_path, ["--world-size", "2"], text)
    assert server.wait() == 2
    assert f"parallelism.{field}: prompts of this pipeline vary in length" in server.tail()
    server.expect_no_orphans()


def test_what_only_the_ranks_can_know_is_said_before_they_serve(tmp_path: Path) -> None:
    """That there is no ControlNet, and on which device they are: both fields at once."""
    text = (
        "{parallelism_config: {ulysses_size: 2, extra_parallel_modules: [controlnet]},"
        " attention_backend: sage}"
    )
    server = _start(tmp_path, ["--world-size", "2"], text)
    assert server.wait() == 2
    message = server.tail()
    assert "parallelism.extra_parallel_modules: this pipeline has no controlnet" in message
    assert "attention_backend: sage needs an accelerator" in message
    server.expect_no_orphans()


def test_a_model_that_puts_out_nan_is_refused(tmp_path: Path) -> None:
    """The warm-up does not hide it: a model whose pictures are no numbers is not served."""
    model = tmp_path / "spoilt"
    shutil.copytree(STARTER_MODEL, model)
    [weights] = (model / "vae").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["decoder.conv_in.bias"] = np.full_like(tensors["decoder.conv_in.bias"], np.nan)
    save_file(tensors, weights, metadata={"format": "pt"})
    server = Server(tmp_path, "--model", str(model))
    assert server.wait() == 2
    assert "NaN" in server.tail()
    server.expect_no_orphans()


def _start(folder: Path, flags: list[str], text: str) -> Server:
    if not text:
        return Server(folder, *flags)
    path = folder / "cache_dit.yaml"
    path.write_text(text, "utf-8")
    return Server(folder, *flags, "--cache-dit-config", str(path))
