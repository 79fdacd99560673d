"""`ditcast tune` and shadows: real processes and a scripted server; the plot, and names in it."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.clients.conftest import Scripted
from tests.clients.scripted import NOT_YET, success
from tests.clients.test_commands import PICTURE, ditcast

from ditcast.v1.acceleration_pb2 import CacheConfig, DBCache, TaylorSeer
from ditcast.v1.diffusion_service_pb2 import TuneRequest
from ditcast.v1.generation_pb2 import ResolvedParameters
from ditcast.v1.tuning_pb2 import (
    TuneComparison,
    TuneCompleted,
    TuneEvent,
    TuneFigures,
    TuneProgress,
    TuneStarted,
)
from ditcast_client import BlockingClient, Client, Unimplemented
from ditcast_client.cache_names import cache_name
from ditcast_client.commands.tune_views import TerminalTuneView
from ditcast_client.tuning_plot import pareto_svg

CAREFUL = CacheConfig(
    db_cache=DBCache(
        fn_compute_blocks=1,
        residual_diff_threshold=0.08,
        max_warmup_steps=8,
        max_continuous_cached_steps=-1,
    ),
    taylor_seer=TaylorSeer(taylorseer_order=1),
)
BOLD = CacheConfig(
    db_cache=DBCache(
        fn_compute_blocks=1,
        residual_diff_threshold=0.4,
        max_warmup_steps=8,
        warmup_interval=2,
        max_continuous_cached_steps=16,
    )
)
YAML = "cache_config:\n  Fn_compute_blocks: 1\n"


def found(index: int, cache: CacheConfig, psnr: float, ratio: float) -> TuneFigures:
    """Give the figures of a candidate on two prompts."""
    return TuneFigures(
        candidate_index=index,
        cache=cache,
        pictures=2,
        psnr=psnr,
        worst_psnr=psnr - 1,
        ssim=0.99,
        worst_ssim=0.98,
        cached_steps=5,
        time_ratio=ratio,
        on_pareto_front=True,
    )


def completed(best: int | None = 1) -> TuneCompleted:
    """Give what came of two candidates."""
    return TuneCompleted(
        candidates=[found(0, CAREFUL, 45, 0.5), found(1, BOLD, 33, 0.25)],
        recommended_index=best,
        cache_dit_yaml="" if best is None else YAML,
    )


def script(best: int | None = 1) -> list[TuneEvent]:
    """Give the events of a Tune."""
    parameters = ResolvedParameters(width=64, height=64, num_inference_steps=8)
    compared = TuneComparison(
        candidate_index=1, prompt_index=0, psnr=33, ssim=0.99, cached_steps=5, total_steps=8
    )
    compared.time_ratio = 0.25
    compared.uncached_denoise.FromSeconds(2)
    return [
        TuneEvent(
            started=TuneStarted(
                parameters=parameters, candidates=[CAREFUL, BOLD], target_psnr=30, generations=6
            )
        ),
        TuneEvent(progress=TuneProgress(generations_total=6, candidate_index=1, step=2)),
        TuneEvent(comparison=compared),
        TuneEvent(completed=completed(best)),
    ]


async def test_the_best_settings_and_the_plot_are_written(server: Scripted, tmp_path: Path) -> None:
    """The file says where it comes from; the table has a row for each candidate."""
    server.service.tune_script = script()
    (tmp_path / "more.txt").write_text("a green cup\n\n  a blue cup \n", "utf-8")
    done = await ditcast(
        server,
        *("tune", "--prompt", "a red cup", "--prompts-file", "more.txt"),
        *("--target-psnr", "30", "--steps", "8", "--width", "64", "--seed", "7"),
        *("-o", "best.yaml", "--plot", "plots/pareto.svg"),
        folder=tmp_path,
    )
    assert (done.code, done.err) == (0, "")
    [request] = server.service.tunes
    assert list(request.prompts) == ["a red cup", "a green cup", "a blue cup"]
    assert (request.target_psnr, request.generation.num_inference_steps) == (30, 8)
    assert (request.generation.width, request.generation.seed) == (64, 7)
    assert not request.generation.HasField("height")
    written = (tmp_path / "best.yaml").read_text("utf-8")
    assert written.endswith(YAML)
    assert "33.0 dB (target 30, worst 32.0)" in written
    assert ET.parse(tmp_path / "plots" / "pareto.svg").getroot().tag.endswith("svg")  # noqa: S314
    lines = done.out.splitlines()
    assert lines[0] == "2 candidates, at most 6 generations"
    assert lines[1].startswith(f"prompt 1, {cache_name(BOLD)}: 5 of 8 steps cached, 33.0 dB")
    assert any("recommended, front" in line and " 4.00 " in line for line in lines)
    assert lines[-1] == "recommended: 2"


async def test_without_a_file_the_settings_are_printed(server: Scripted, tmp_path: Path) -> None:
    """On the standard output, after the table."""
    server.service.tune_script = script()
    done = await ditcast(server, "tune", "--prompt", "a cup", folder=tmp_path)
    assert done.code == 0
    assert done.out.endswith(YAML)
    assert os.listdir(tmp_path) == ["ditcast.sock"]  # noqa: PTH208 (no path is walked on the loop)


async def test_nothing_to_recommend_is_a_failure(server: Scripted, tmp_path: Path) -> None:
    """No file is written, and the exit code says so."""
    server.service.tune_script = script(best=None)
    done = await ditcast(server, "tune", "--prompt", "a", "-o", "best.yaml", folder=tmp_path)
    assert done.code == 1
    assert "no candidate is fast and near enough" in done.out
    assert not (tmp_path / "best.yaml").exists()


async def test_events_as_json(server: Scripted, tmp_path: Path) -> None:
    """One a line, and nothing else."""
    server.service.tune_script = script()
    done = await ditcast(server, "tune", "--prompt", "a", "--json", folder=tmp_path)
    kinds = [next(iter(json.loads(line))) for line in done.out.splitlines()]
    assert kinds == ["started", "progress", "comparison", "completed"]


async def test_candidates_are_read_from_files(server: Scripted, tmp_path: Path) -> None:
    """As `generate --cache` reads one."""
    server.service.tune_script = script()
    (tmp_path / "mine.json").write_text('{"dbCache": {"fnComputeBlocks": 2}}', "utf-8")
    asked = ("tune", "--prompt", "a", "--candidate", "mine.json", "--candidate", "mine.json")
    assert (await ditcast(server, *asked, folder=tmp_path)).code == 0
    [request] = server.service.tunes
    assert [each.db_cache.fn_compute_blocks for each in request.candidates] == [2, 2]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((), "--prompt or --prompts-file"),
        (("--prompt", "a", "--plot", "pareto.png"), "ends in .svg"),
        (("--prompts-file", "none.txt"), "cannot read none.txt"),
        (("--prompt", "a", "--candidate", "none.json"), "cannot read none.json"),
        (("--prompt", "a", "--seed", "-1"), "out of range: -1"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_sent(
    server: Scripted, tmp_path: Path, asked: tuple[str, ...], says: str
) -> None:
    """Exit code 2, and the option's name."""
    done = await ditcast(server, "tune", *asked, folder=tmp_path)
    assert done.code == 2
    assert says in done.err
    assert server.service.tunes == []


async def test_clients_give_events_and_errors(server: Scripted, client: Client) -> None:
    """Both clients; an error has its class."""
    request = TuneRequest(prompts=["a"])
    server.service.tune_script = script()
    assert [event async for event in client.tune(request)] == script()

    def use() -> list[TuneEvent]:
        with BlockingClient(server.address) as blocking:
            return list(blocking.tune(request))

    assert await asyncio.to_thread(use) == script()
    server.service.tune_script = [NOT_YET]
    with pytest.raises(Unimplemented):
        _ = [event async for event in client.tune(request)]


def test_the_plot_has_every_candidate(tmp_path: Path) -> None:
    """A point, a name and a tooltip for each; points lie within the field."""
    one = pareto_svg(completed(), 30)
    root = ET.fromstring(one)  # noqa: S314 (we wrote it)
    points = [each for each in root.iter() if each.tag.endswith("circle")]
    assert len(points) == 2
    for point in points:
        assert 60 <= float(point.attrib["cx"]) <= 520
        assert 20 <= float(point.attrib["cy"]) <= 420
    # Faster is further right, nearer is further up.
    assert float(points[0].attrib["cx"]) < float(points[1].attrib["cx"])
    assert float(points[0].attrib["cy"]) < float(points[1].attrib["cy"])
    assert cache_name(BOLD) in one
    assert "(recommended)" in one
    assert "(recommended)" not in pareto_svg(completed(best=None), 30)


def test_a_plot_of_one_point_at_the_target_can_be_drawn() -> None:
    """Axes without any span would have no place for anything."""
    alone = TuneCompleted(candidates=[found(0, CAREFUL, 30, 1.0)])
    assert "nan" not in pareto_svg(alone, 30)


def test_names_tell_what_matters() -> None:
    """Method, blocks, threshold, warm-up, row, forecast."""
    assert cache_name(CAREFUL) == "DBCache, F1B0, threshold 0.08, warm-up 8, TaylorSeer 1"
    assert cache_name(BOLD) == "DBCache, F1B0, threshold 0.4, warm-up 8 by 2, 16 in a row"
    assert cache_name(CacheConfig()) == "no cache"


def test_the_bar_takes_every_event(capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal; what stays on the screen is what a pipe would get."""
    with TerminalTuneView() as view:
        for event in script():
            view.show(event)
        view.finish(completed())
    assert "recommended: 2" in capsys.readouterr().out


async def test_a_shadow_is_asked_for_and_shown(server: Scripted, tmp_path: Path) -> None:
    """`generate --shadow`: what was found stands with the other figures."""
    events = success(PICTURE)
    shadow = events[-1].completed.shadow
    shadow.outputs.add(output_index=0, psnr=41.27, ssim=0.9987)
    shadow.uncached_denoise.FromMilliseconds(1500)
    shadow.time_ratio = 0.4
    events[-1].completed.timings.shadow.FromMilliseconds(1700)
    server.service.script = events
    done = await ditcast(server, "generate", "a cup", "--shadow", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert server.service.requests[0].shadow_comparison
    assert "denoise 1.5 s; with the cache 2.50 times as fast" in done.out
    assert "output 0 is at 41.3 dB, SSIM 0.9987" in done.out
    assert "shadow 1.7 s" in done.out
