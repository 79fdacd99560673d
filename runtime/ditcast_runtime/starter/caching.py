"""Measures what caching saves on the embedded model, and what it costs.

`python -m ditcast_runtime.starter.caching` tries the reference settings with several thresholds,
with and without TaylorSeer, then others that cache more, each with and without a negative prompt.
It stores all figures, draws them, and writes the recommended settings into the model's folder: the
fastest that keep 30 dB on average, and the quality within one point, in both cases.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from pathlib import Path

import torch
import yaml

from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.starter.caching_plot import plot
from ditcast_runtime.starter.judge import Task, held_out_task
from ditcast_runtime.starter.painter import Manner
from ditcast_runtime.starter.studio import Figures, Options, Studio
from ditcast_runtime.starter.text_encoder import NULL_PROMPT

REFERENCE: Options = {
    "max_warmup_steps": 8,
    "warmup_interval": 2,
    "max_cached_steps": -1,
    "max_continuous_cached_steps": 2,
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "residual_diff_threshold": 0.12,
    "enable_taylorseer": True,
    "taylorseer_order": 1,
}
COMMENT = "The fastest settings measured that keep 30 dB and the quality at 50 steps: see the card."
THRESHOLDS = (0.02, 0.04, 0.08, 0.12, 0.24, 0.4)


def sweep() -> dict[str, Options]:
    """List the reference settings with each threshold, with and without TaylorSeer."""
    return {
        f"threshold {threshold}" + (", TaylorSeer" if forecast else ""): {
            **REFERENCE,
            "residual_diff_threshold": threshold,
            "enable_taylorseer": forecast,
        }
        for forecast in (True, False)
        for threshold in THRESHOLDS
    }


def candidates() -> dict[str, Options]:
    """List settings that cache more than the reference, all with TaylorSeer of first order."""
    found = {}
    for warm_up, interval in ((8, 2), (4, 1), (2, 1)):
        for continuous in (4, 8, 16, 32):
            options = {
                **REFERENCE,
                "max_warmup_steps": warm_up,
                "warmup_interval": interval,
                "max_continuous_cached_steps": continuous,
                "residual_diff_threshold": 0.4,
            }
            found[f"warm-up {warm_up} by {interval}, {continuous} in a row"] = options
    for mask in ("slow", "medium", "fast", "ultra"):
        options = {"steps_computation_mask": mask, "steps_computation_policy": "static"}
        found[f"mask {mask}"] = {**REFERENCE, "max_warmup_steps": 1, **options}
    return found


def measure(
    model: Path, settings: dict[str, Options], task: Task, *, steps: int, batch: int = 1
) -> list[Figures]:
    """Measure each of the settings, with and without a negative prompt, and print the figures."""
    found = []
    for negative_prompt in (None, NULL_PROMPT):
        manner = Manner(steps=steps, negative_prompt=negative_prompt)
        studio = Studio(model, task, manner, batch=batch, pairs=3 if batch == 1 else 1)
        for name, options in settings.items():
            found.append(studio.measure(name, options))
            print(row(found[-1]), flush=True)
    return found


def recommend(found: list[Figures]) -> list[str]:
    """Name the settings that keep what must be kept in both cases, the fastest first.

    How fast they are is the worse of their two time ratios.
    """
    groups: dict[str, list[Figures]] = {}
    for figures in found:
        groups.setdefault(figures.name, []).append(figures)
    kept = [name for name, group in groups.items() if all(each.keeps for each in group)]
    return sorted(kept, key=lambda name: max(each.time_ratio for each in groups[name]))


def header() -> str:
    """Give the first lines of the table in Markdown."""
    names = ("settings", "true CFG", "pictures", "cached", "time", "PSNR", "SSIM", "right", "lost")
    return "| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|"


def row(figures: Figures) -> str:
    """Give one line of the table."""
    cells = (
        figures.name,
        "yes" if figures.negative_prompt else "no",
        f"{figures.pictures}",
        f"{figures.cached_steps:.1f} of {figures.steps}",
        f"{figures.time_ratio:.2f}",
        f"{figures.psnr:.1f} ({figures.worst_psnr:.1f})",
        f"{figures.ssim:.4f} ({figures.worst_ssim:.4f})",
        f"{figures.quality:.1%}",
        f"{figures.lost:+.1%}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Sweep, search and recommend, as the command line says."""
    options = _parser().parse_args()
    torch.set_num_threads(1)  # ratios of several threads on a busy machine mean little
    logging.disable(logging.WARNING)  # cache-dit puts ten lines between the rows of the table
    print(header(), flush=True)
    task, few = held_out_task(options.captions), held_out_task(options.few)
    found = measure(options.model, sweep(), task, steps=options.steps)
    tried = measure(options.model, candidates(), few, steps=options.steps)
    name = _recommended(options, tried, found)
    stored = [dataclasses.asdict(figures) for figures in [*found, *tried]]
    options.json.write_text(json.dumps({"recommended": name, "figures": stored}, indent=1) + "\n")
    plot([*found, *tried], name, options.plot)


def _recommended(options: argparse.Namespace, tried: list[Figures], found: list[Figures]) -> str:
    """Measure candidates on many captions, the fastest first, until one keeps what it must."""
    task = held_out_task(options.many)
    for name in recommend(tried):
        settings = {name: candidates()[name]}
        final = measure(options.model, settings, task, steps=options.steps, batch=options.batch)
        found += final
        if recommend(final):
            text = yaml.safe_dump({"cache_config": settings[name]}, sort_keys=False)
            options.yaml.write_text(f"# {COMMENT}\n{text}")
            return name
    raise SystemExit("None of the candidates keeps likeness and quality.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=STARTER_MODEL, help="a pipeline folder")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--captions", type=int, default=12, help="for the reference settings")
    parser.add_argument("--few", type=int, default=6, help="captions to choose candidates by")
    parser.add_argument("--many", type=int, default=100, help="captions for what is recommended")
    parser.add_argument("--batch", type=int, default=25, help="pictures a call, for the last")
    parser.add_argument("--json", type=Path, default=Path("caching.json"))
    parser.add_argument("--plot", type=Path, default=Path("caching.png"))
    parser.add_argument("--yaml", type=Path, default=STARTER_MODEL / "cache.yaml")
    return parser


if __name__ == "__main__":
    main()
