"""`ditcast tune`."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final

from ditcast.v1.diffusion_service_pb2 import GenerateRequest, TuneRequest
from ditcast.v1.tuning_pb2 import TuneCompleted, TuneStarted
from ditcast_client import exits
from ditcast_client.client import Client
from ditcast_client.commands.command import UsageError, access, add_address
from ditcast_client.commands.generate import read_cache
from ditcast_client.commands.output_files import place
from ditcast_client.commands.tune_views import TuneView, choose_tune_view
from ditcast_client.tuning_plot import pareto_svg

_SHARED: Final = (
    "negative_prompt",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "true_cfg_scale",
    "seed",
)
"""Options that are fields of every generation; None: left to the server."""


class Tune:
    """Measure cache settings on one's own prompts, and write the file of the best."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        _add_what(parser)
        _add_shared(parser)
        parser.add_argument(
            "-o",
            "--output",
            type=Path,
            metavar="FILE",
            help="where the best settings are written, YAML in cache-dit's own format, for "
            "`ditcast serve --cache-dit-config` and `ditcast configure --cache-dit-file` "
            "(default: they are printed)",
        )
        parser.add_argument(
            "--plot", type=Path, metavar="FILE.svg", help="draw speed against likeness"
        )
        parser.add_argument("--json", action="store_true", help="print one event a line, as JSON")
        add_address(parser)

    def run(self, options: argparse.Namespace) -> int:
        """Measure, show, write."""
        request = build_request(options)
        if options.plot is not None and options.plot.suffix.lower() != ".svg":
            raise UsageError(f"{options.plot}: the plot is an SVG: name a file that ends in .svg")
        for path in (options.output, options.plot):
            place(path)
        client = Client(options.address, **access(options))
        view = choose_tune_view(as_json=options.json)
        with view:
            started, completed = asyncio.run(_tune(client, request, view))
            view.finish(completed)
        if options.plot is not None:
            _write(options.plot, pareto_svg(completed, started.target_psnr))
        return _deliver(completed, started, options)


def build_request(options: argparse.Namespace) -> TuneRequest:
    """Build the request that the options ask for.

    Raises:
        UsageError: A value is not what its option takes.
    """
    prompts = [*options.prompt, *_prompts_of(options.prompts_file)]
    if not prompts:
        raise UsageError("nothing is to be seen: use --prompt or --prompts-file")
    shared = {name: getattr(options, name) for name in _SHARED}
    try:
        return TuneRequest(
            generation=GenerateRequest(**shared),
            prompts=prompts,
            target_psnr=options.target_psnr,
            candidates=[read_cache(path) for path in options.candidate],
        )
    except (TypeError, ValueError) as err:
        raise UsageError(str(err)) from err


async def _tune(
    client: Client, request: TuneRequest, view: TuneView
) -> tuple[TuneStarted, TuneCompleted]:
    started, completed = TuneStarted(), TuneCompleted()
    async with client, aclosing(client.tune(request)) as events:
        async for event in events:
            view.show(event)
            if event.HasField("started"):
                started = event.started
            elif event.HasField("completed"):
                completed = event.completed
    return started, completed


def _deliver(completed: TuneCompleted, started: TuneStarted, options: argparse.Namespace) -> int:
    """Write the recommended settings, or give the exit code that says there are none."""
    if not completed.HasField("recommended_index"):
        return exits.FAILED
    text = _comment(completed, started) + completed.cache_dit_yaml
    if options.output is not None:
        _write(options.output, text)
    elif not options.json:
        print(text, end="")
    return exits.DONE


def _comment(completed: TuneCompleted, started: TuneStarted) -> str:
    """Say in the file where it comes from: figures without their conditions mislead."""
    best = next(
        each for each in completed.candidates if each.candidate_index == completed.recommended_index
    )
    parameters = started.parameters
    size = f"{parameters.width}x{parameters.height}"
    prompts = "1 prompt" if best.pictures == 1 else f"{best.pictures} prompts"
    return (
        f"# By ditcast tune, on {prompts} of {size} in "
        f"{parameters.num_inference_steps} steps: {best.psnr:.1f} dB (target "
        f"{started.target_psnr:g}, worst {best.worst_psnr:.1f}),\n"
        f"# SSIM {best.ssim:.4f}, {best.cached_steps:.1f} steps cached, denoising in "
        f"{best.time_ratio:.2f} of the time.\n"
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as err:
        raise UsageError(f"cannot write {err.filename}: {err.strerror}") from err


def _prompts_of(path: Path | None) -> Sequence[str]:
    """Read a prompt a line; empty lines do not count."""
    if path is None:
        return ()
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as err:
        raise UsageError(f"cannot read {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise UsageError(f"{path} is not UTF-8 text") from err
    return [line.strip() for line in lines if line.strip()]


def _add_what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt", action="append", default=[], help="what is to be seen; may be repeated"
    )
    parser.add_argument(
        "--prompts-file", type=Path, metavar="FILE", help="more of them, one a line"
    )
    parser.add_argument(
        "--target-psnr",
        type=float,
        metavar="DB",
        help="what the mean PSNR to the pictures without a cache must reach (default: 30)",
    )
    parser.add_argument(
        "--candidate",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="CacheConfig to measure, as JSON; may be repeated (default: a dozen, from careful "
        "to bold)",
    )


def _add_shared(parser: argparse.ArgumentParser) -> None:
    """Declare what all generations share; whatever is left out, the server decides."""
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what is not to be seen")
    parser.add_argument("--width", type=int, metavar="PIXELS")
    parser.add_argument("--height", type=int, metavar="PIXELS")
    parser.add_argument("--steps", type=int, dest="num_inference_steps", metavar="N")
    parser.add_argument("--guidance-scale", type=float, metavar="X")
    parser.add_argument("--true-cfg-scale", type=float, metavar="X")
    parser.add_argument("--seed", type=int, metavar="N", help="of all pictures")
