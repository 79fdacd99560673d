"""What a receipt names is made again to the byte, or what differs is said by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.distributed.generations import MASKED, OFF, fields, other_fields
from tests.distributed.servers import Server

from ditcast.v1.acceleration_pb2 import Configuration, DBCache
from ditcast.v1.generation_pb2 import OUTPUT_FORMAT_PNG, OutputOptions
from ditcast_client import Client, compare, exits, read_receipt, replay, write_receipt
from ditcast_client.cli import main

PNG = OutputOptions(format=OUTPUT_FORMAT_PNG)


async def test_the_same_server_makes_the_same_bytes(one: Client, tmp_path: Path) -> None:
    """Also from the file, with an own schedule, all seeds and two outputs."""
    made = fields(
        cache=MASKED,
        seed=2**64 - 1,
        num_images=2,
        sigmas=[1.0, 0.9, 0.8, 0.6, 0.4, 1 / 3, 0.2, 0.1],
        pipeline_kwargs={"max_sequence_length": 64},
        output=PNG,
    )
    result = await one.generate(**made).result()
    receipt = read_receipt(write_receipt(result.receipt, tmp_path / "receipt.json"))
    assert receipt == result.receipt
    again = await replay(one, receipt)
    assert (again.differences, again.same, len(again.outputs)) == ((), True, 2)
    assert again.result.outputs == result.outputs
    assert again.result.receipt == result.receipt


async def test_the_cache_of_a_receipt_outlives_the_servers(two: Client) -> None:
    """A replay brings its own settings, so that a Configure in between changes nothing."""
    result = await two.generate(**fields()).result()
    before = await two.configuration()
    threshold = Configuration()
    threshold.cache.db_cache.CopyFrom(DBCache(residual_diff_threshold=0.9, max_warmup_steps=1))
    await two.configure(threshold)
    try:
        assert (await two.generate(**fields()).result()).outputs != result.outputs
        again = await replay(two, result.receipt)
    finally:
        await two.configure(before, update_mask=["cache"])
    assert (again.differences, again.same) == ((), True)


async def test_another_group_of_ranks_is_named(one: Client, two: Client) -> None:
    """Two ranks instead of one: the world, its threads and its split."""
    result = await one.generate(**fields(cache=OFF)).result()
    found = {each.name: (each.receipt, each.server) for each in await compare(two, result.receipt)}
    assert found["world_size"] == ("1", "2")
    assert found["configuration.parallelism.ulysses_degree"] == ("1", "2")
    assert not any(name.startswith(("library_versions", "model_id", "weights")) for name in found)


async def test_other_weights_are_named(one: Client, server_other: Server) -> None:
    """Another model is told by its name and by the content of its files."""
    async with server_other.client() as other:
        result = await other.generate(**other_fields()).result()
        assert (await replay(other, result.receipt)).same
    found = {each.name for each in await compare(one, result.receipt)}
    assert {"model_id", "weights_digest"} <= found
    assert "world_size" not in found


def test_the_commands_keep_and_replay_a_receipt(
    server_one: Server, server_two: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each end has its exit code; --check and --strict generate nothing where something differs."""
    receipt, out = tmp_path / "receipt.json", tmp_path / "out.png"
    shown = ["--preview-every", "2", "--preview-folder", str(tmp_path / "previews")]
    there = ["--address", server_one.address]
    elsewhere = ["--address", server_two.address]
    made = ["generate", "a red circle", "--steps", "4", "-o", str(out), "--receipt", str(receipt)]
    assert main([*made, *shown, *there]) == exits.DONE
    assert "preview after step 2 of output 0: 128x128" in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == ["preview-0002.jpg", "preview-0004.jpg"]
    again = tmp_path / "again.png"
    assert main(["replay", str(receipt), "-o", str(again), *there]) == exits.DONE
    said = capsys.readouterr().out
    assert "the server is as the receipt names it" in said
    assert "output 0: the same bytes" in said
    assert again.read_bytes() == out.read_bytes()
    assert main(["replay", str(receipt), "--check", *there]) == exits.DONE
    assert main(["replay", str(receipt), "--check", *elsewhere]) == exits.DIFFERENT
    assert main(["replay", str(receipt), "--strict", *elsewhere]) == exits.REFUSED
    said = capsys.readouterr().out
    assert "world_size: 1 in the receipt, 2 on the server" in said
    assert "output 0" not in said
    changed = json.loads(receipt.read_text("utf-8"))
    changed["parameters"]["seed"] = str(int(changed["parameters"]["seed"]) ^ 1)
    receipt.write_text(json.dumps(changed), "utf-8")
    assert main(["replay", str(receipt), *there]) == exits.DIFFERENT
    assert "output 0: DIFFERENT" in capsys.readouterr().out
