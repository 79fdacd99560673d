"""Measures how well a pipeline draws what it never saw: `python -m ditcast_runtime.starter.judge`.

Prints a table with one row for each number of steps, with and without a negative prompt, above
them what the judge makes of truly drawn pictures; `--json` stores the same.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ditcast_runtime.config import STARTER_MODEL
from ditcast_runtime.starter import scenes
from ditcast_runtime.starter.painter import BATCH, Manner, Painter
from ditcast_runtime.starter.scenes import Picture, Scene
from ditcast_runtime.starter.seeing import Verdict, compare, confusions, see
from ditcast_runtime.starter.text_encoder import NULL_PROMPT

ASPECTS = tuple(field.name for field in dataclasses.fields(Verdict))


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    """Shares of pictures, 0 to 1, in which something is right."""

    pictures: int
    aspects: dict[str, float]
    """By name of a `Verdict`'s field."""
    all_right: float
    one_thing: float
    """All right, of the pictures that should show one thing."""
    two_things: float
    """All right, of the pictures that should show two."""
    confusions: dict[str, dict[str, int]]
    """How often a shape (first key) was seen as another; only what went wrong."""


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What is to be drawn."""

    scenes: list[Scene]
    captions: list[str]
    seeds: list[int]


def held_out_task(count: int, seed: int = 0) -> Task:
    """Choose captions that training never saw, in any wording: half of them with two things."""
    rng = np.random.default_rng(seed)
    chosen = [scenes.sample_held_out(rng) for _ in range(count)]
    captions = [scenes.caption(scene, rng) for scene in chosen]
    return Task(chosen, captions, list(range(seed, seed + count)))


def judge(wanted: list[Scene], pictures: Iterable[Picture]) -> Judgement:
    """Compare pictures with the scenes that they should show."""
    seen = [see(picture) for picture in pictures]
    verdicts = [compare(*pair) for pair in zip(wanted, seen, strict=True)]
    wrong: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for scene, sight in zip(wanted, seen, strict=True):
        for shape, found in confusions(scene, sight):
            if shape != found:
                wrong[shape][found or "none"] += 1
    return Judgement(
        pictures=len(verdicts),
        aspects={name: _share(getattr(one, name) for one in verdicts) for name in ASPECTS},
        all_right=_share(one.all_right for one in verdicts),
        one_thing=_share_by_number(wanted, verdicts, 1),
        two_things=_share_by_number(wanted, verdicts, 2),
        confusions={shape: dict(counts) for shape, counts in wrong.items()},
    )


def judge_truth(task: Task, width: int, height: int) -> Judgement:
    """Judge truly drawn pictures, of which all should be right."""
    rng = np.random.default_rng(0)
    return judge(task.scenes, (scenes.draw(scene, width, height, rng) for scene in task.scenes))


def judge_painter(painter: Painter, task: Task, manner: Manner, label: str = "") -> Judgement:
    """Let a pipeline paint a task and judge it, with a progress bar."""
    pictures: list[Picture] = []
    with tqdm(total=len(task.captions), desc=label, unit="picture") as bar:
        for start in range(0, len(task.captions), BATCH):
            part = slice(start, start + BATCH)
            pictures += painter.paint(task.captions[part], task.seeds[part], manner)
            bar.update(len(pictures) - bar.n)
    return judge(task.scenes, pictures)


def manners(
    steps: Iterable[int], *, width: int = 128, height: int = 128, true_cfg_scale: float = 3.0
) -> dict[str, Manner]:
    """List the numbers of steps, each without and with a negative prompt, under a name."""
    found = {}
    for negative_prompt in (None, NULL_PROMPT):
        for number in steps:
            suffix = "" if negative_prompt is None else f", true CFG {true_cfg_scale:g}"
            found[f"{number} steps{suffix}"] = Manner(
                steps=number,
                negative_prompt=negative_prompt,
                true_cfg_scale=true_cfg_scale,
                width=width,
                height=height,
            )
    return found


def judge_folder(
    model: Path, device: torch.device, task: Task, asked: dict[str, Manner]
) -> dict[str, Judgement]:
    """Judge a pipeline folder, and drawn truth beside it, and print the table row by row."""
    print(header())
    first = next(iter(asked.values()))
    rows = {"drawn truth": judge_truth(task, first.width, first.height)}
    print(row("drawn truth", rows["drawn truth"]))
    painter = Painter.load(model, device)
    for label, manner in asked.items():
        rows[label] = judge_painter(painter, task, manner, label)
        print(row(label, rows[label]), flush=True)
    print_confusions(rows)
    return rows


def store(rows: dict[str, Judgement], path: Path) -> None:
    """Write the figures as JSON."""
    found = {label: dataclasses.asdict(judgement) for label, judgement in rows.items()}
    path.write_text(json.dumps(_rounded(found), indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Judge a pipeline folder as the command line says."""
    options = _parser().parse_args(arguments)
    width, height = (int(part) for part in options.size.split("x"))
    asked = manners(
        options.steps, width=width, height=height, true_cfg_scale=options.true_cfg_scale
    )
    task = held_out_task(options.count, options.seed)
    rows = judge_folder(options.model, torch.device(options.device), task, asked)
    if options.json:
        store(rows, options.json)


def header() -> str:
    """Give the first lines of a table in Markdown."""
    names = ["", "pictures", *ASPECTS, "all right", "one thing", "two things"]
    return "| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|"


def row(label: str, judgement: Judgement) -> str:
    """Give a judgement as a line of the table."""
    shares = [
        *judgement.aspects.values(),
        judgement.all_right,
        judgement.one_thing,
        judgement.two_things,
    ]
    cells = [label, str(judgement.pictures), *(f"{share:.1%}" for share in shares)]
    return "| " + " | ".join(cells) + " |"


def print_confusions(rows: dict[str, Judgement]) -> None:
    """Say which shapes were taken for which."""
    for label, judgement in rows.items():
        parts = [
            f"{shape} as {found} ({count})"
            for shape, counts in judgement.confusions.items()
            for found, count in counts.items()
        ]
        print(f"{label}: " + (", ".join(parts) or "no shape taken for another"))


def _share(right: Iterable[bool]) -> float:
    found = list(right)
    return sum(found) / max(1, len(found))


def _share_by_number(wanted: list[Scene], verdicts: list[Verdict], number: int) -> float:
    pairs = zip(wanted, verdicts, strict=True)
    return _share(verdict.all_right for scene, verdict in pairs if len(scene.things) == number)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ditcast_runtime.starter.judge", description=__doc__)
    parser.add_argument("--model", type=Path, default=STARTER_MODEL, help="a pipeline folder")
    parser.add_argument("--count", type=int, default=200, help="captions")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--true-cfg-scale", type=float, default=3.0)
    parser.add_argument("--size", default="128x128", help="width x height in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="where to store the figures")
    return parser


if __name__ == "__main__":
    main()
