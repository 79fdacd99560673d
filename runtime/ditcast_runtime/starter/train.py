"""Makes the embedded model from nothing: `make starter`, which runs this module.

Seven stages, each of which needs only what those before it left in the work folder: text encoder,
autoencoder, pictures (as latents, with their captions), transformer, assembly, judgement, contact
sheet. Started again after an interruption, it goes on where it was: finished stages are skipped,
and the long ones keep checkpoints.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import torch

from ditcast_runtime.starter import judge, latents, text_encoder, transformer, vae
from ditcast_runtime.starter.assemble import assemble
from ditcast_runtime.starter.contact_sheet import contact_sheet
from ditcast_runtime.starter.latents import SamplesPlan
from ditcast_runtime.starter.painter import Painter
from ditcast_runtime.starter.stages import Run
from ditcast_runtime.starter.text_encoder import TextEncoderPlan
from ditcast_runtime.starter.transformer import TransformerPlan
from ditcast_runtime.starter.vae import VaePlan


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How long everything takes."""

    text_encoder: TextEncoderPlan
    vae: VaePlan
    samples: SamplesPlan
    transformer: TransformerPlan
    judged_captions: int
    judged_steps: tuple[int, ...]


FULL = Plan(
    text_encoder=TextEncoderPlan(),
    vae=VaePlan(),
    samples=SamplesPlan(),
    transformer=TransformerPlan(),
    judged_captions=200,
    judged_steps=(20, 50),
)
TINY = Plan(
    text_encoder=text_encoder.TINY,
    vae=vae.TINY,
    samples=latents.TINY,
    transformer=transformer.TINY,
    judged_captions=4,
    judged_steps=(2,),
)
"""Goes through everything in less than a minute, and learns nothing."""


def train(plan: Plan, work: Path, output: Path, device: torch.device) -> None:
    """Go through all stages; the pipeline is in `output` afterwards, figures in `work`."""
    run = Run(_without_length(plan), work)
    run.stage(
        "text encoder", lambda: text_encoder.train_text_encoder(work, plan.text_encoder, device)
    )
    run.stage("autoencoder", lambda: vae.train_vae(work, plan.vae, device))
    run.stage("pictures", lambda: latents.draw_samples(work, plan.samples, device))
    length = f"{plan.transformer.shallow_steps} + {plan.transformer.steps} steps"
    run.stage(
        f"transformer, {length}",
        lambda: transformer.train_transformer(work, plan.transformer, device),
    )
    run.stage("assembly", lambda: assemble(work, output))
    run.stage("judgement", lambda: _judge(plan, work, output, device))
    run.stage("contact sheet", lambda: _draw_sheet(work, output, device))


def main(arguments: list[str] | None = None) -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a minute, to see that it works")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=Path("build/starter"), help="checkpoints")
    parser.add_argument(
        "--steps",
        type=int,
        help="of the transformer's last stage; with more than before it goes on where it was",
    )
    parser.add_argument("--output", type=Path, help="the pipeline's folder; unset: inside --work")
    options = parser.parse_args(arguments)
    output = options.output or options.work / "qwen-image-starter"
    plan = TINY if options.tiny else FULL
    if options.steps is not None:
        longer = dataclasses.replace(plan.transformer, steps=options.steps)
        plan = dataclasses.replace(plan, transformer=longer)
    train(plan, options.work, output, torch.device(options.device))
    print(f"The model is in {output}; serve it with: ditcast serve --model {output}")


def _without_length(plan: Plan) -> dict[str, Any]:
    """Say what makes a run: how long the transformer is trained does not, it may go on."""
    said = dataclasses.asdict(plan)
    for steps in ("shallow_steps", "steps"):
        del said["transformer"][steps]
    return said


def _judge(plan: Plan, work: Path, output: Path, device: torch.device) -> None:
    task, asked = judge.held_out_task(plan.judged_captions), judge.manners(plan.judged_steps)
    judge.store(judge.judge_folder(output, device, task, asked), work / "judgement.json")


def _draw_sheet(work: Path, output: Path, device: torch.device) -> None:
    contact_sheet(Painter.load(output, device)).save(work / "contact-sheet.png", optimize=True)


if __name__ == "__main__":
    main()
