"""The transformer of the embedded model: 20 thin blocks that learn to draw by flow matching.

At time t a picture's latents x are mixed with noise n to (1 - t) x + t n, and the model learns the
velocity n - x from that, t and the caption. It is trained in two stages: first with every other
block left out, then with all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from torch import Tensor, nn
from tqdm import tqdm

from ditcast_runtime.starter import blocks, checkpoint, vae
from ditcast_runtime.starter.batches import Feeder, FeedPlan
from ditcast_runtime.starter.muon import Muon
from ditcast_runtime.starter.schedule import set_learning_rate, share_of_learning_rate

_MATRIX = 2  # dimensions


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TransformerPlan:
    """How long the transformer is trained, and how."""

    blocks: int = 20
    heads: int = 6
    """Of 16 features; 2 and 3 ranks can share them out evenly."""
    shallow_steps: int = 1800
    """First steps, with every other block left out: they take half the time, and what is learned
    first (colours, places) needs no depth."""
    steps: int = 1200
    """Steps after those, with all blocks."""
    decay_share: float = 0.7
    """Of `steps`, at the end, over which the learning rates fall to zero."""
    feed: FeedPlan = dataclasses.field(default_factory=FeedPlan)
    muon_lr: float = 7e-3
    adamw_lr: float = 2e-3
    warm_up_steps: int = 150
    ema: float = 0.998
    """Of the weights, kept from one step to the next in their moving average."""
    checkpoint_steps: int = 200
    ranks: int = 2
    """Processes on a CPU, of one thread each: threads that wait for each other at every product
    are slower as soon as anything else runs. On a GPU there is one."""
    compiled: bool = True
    seed: int = 0


TINY = TransformerPlan(
    blocks=2, shallow_steps=2, steps=2, feed=FeedPlan(tokens=160), warm_up_steps=1, compiled=False
)
"""Goes through everything in seconds, and learns nothing."""


def train_transformer(work: Path, plan: TransformerPlan, device: torch.device) -> None:
    """Train from where it was left, and write `work/transformer`.

    Raises:
        subprocess.CalledProcessError: a rank failed; it has said why.
    """
    if device.type != "cpu" or plan.ranks == 1:
        _train_stages(work, plan, device)
        return
    meeting = work / "rendezvous"
    meeting.unlink(missing_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        # A step touches gigabytes; with pages of 4 KiB a sixth of it goes into looking them up.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    command = [sys.executable, "-m", __name__, str(work), msgspec.json.encode(plan).decode()]
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(plan.ranks)]
    try:
        for rank in ranks:
            if code := rank.wait():
                raise subprocess.CalledProcessError(code, command)
    finally:
        for rank in ranks:
            rank.kill()  # the others would wait for the one that failed


def build(plan: TransformerPlan, depth: int) -> QwenImageTransformer2DModel:
    """Make an untrained transformer whose blocks leave alone what passes through them."""
    torch.manual_seed(plan.seed)
    model: QwenImageTransformer2DModel = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * vae.CHANNELS,
        out_channels=vae.CHANNELS,
        num_layers=depth,
        attention_head_dim=16,
        num_attention_heads=plan.heads,
        joint_attention_dim=128,
        axes_dims_rope=(4, 6, 6),
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    embedder = model.time_text_embed.timestep_embedder
    for linear in (embedder.linear_1, embedder.linear_2):
        nn.init.normal_(linear.weight, std=0.02)
    zeroed = [model.norm_out.linear, model.proj_out]
    for block in _blocks(model):
        zeroed += [block.img_mod[1], block.txt_mod[1]]
    for linear in zeroed:
        nn.init.zeros_(linear.weight)
    return model


@torch.no_grad()
def deepened(shallow: QwenImageTransformer2DModel) -> QwenImageTransformer2DModel:
    """Put behind each block a copy with closed gates: at first the output stays the same."""
    depth = 2 * len(_blocks(shallow))
    model: Any = QwenImageTransformer2DModel.from_config(shallow.config, num_layers=depth)
    weights = shallow.state_dict()
    inside = "transformer_blocks."
    outside = {name: each for name, each in weights.items() if not name.startswith(inside)}
    model.load_state_dict(outside, strict=False)
    for index, block in enumerate(_blocks(model)):
        block.load_state_dict(_blocks(shallow)[index // 2].state_dict())
        if index % 2:
            for modulation in (block.img_mod[1], block.txt_mod[1]):
                # Six parts: shift, scale and gate before attention, then before the feed-forward.
                modulation.weight.unflatten(0, (6, -1))[[2, 5]] = 0
                modulation.bias.unflatten(0, (6, -1))[[2, 5]] = 0
    made: QwenImageTransformer2DModel = model
    return made


def _blocks(model: QwenImageTransformer2DModel) -> list[Any]:
    """Give the blocks, of which their list knows no more than that they are modules."""
    return list(model.transformer_blocks)


class Flat:
    """All weights of a model as one vector, and all gradients as another.

    The model's own are views of them. One product then keeps the moving average, one norm clips,
    and one message averages over ranks.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = list(model.parameters())
        self.weights = torch.cat([each.detach().flatten() for each in parameters])
        self.gradients = torch.zeros_like(self.weights)
        sizes = [each.numel() for each in parameters]
        parts = zip(self.weights.split(sizes), self.gradients.split(sizes), strict=True)
        for parameter, (weight, gradient) in zip(parameters, parts, strict=True):
            parameter.data = weight.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)


class Training:
    """One stage on one rank: a model, how it moves, and what goes into a checkpoint."""

    def __init__(
        self, model: QwenImageTransformer2DModel, plan: TransformerPlan, saved: Path
    ) -> None:
        """Begin, or go on from the checkpoint if there is one in `saved`."""
        self.model, self.plan = model, plan
        self.flat = Flat(model)
        self.average = self.flat.weights.clone()
        self.optimisers = _optimisers(model)
        self._saved = saved
        self._state = {"now": self.flat.weights, "average": self.average}
        compiled = torch.compile(blocks.transform, dynamic=True) if plan.compiled else None
        self._block: blocks.Block = compiled or blocks.transform
        self.facts = checkpoint.Facts(step=0, loss=1.0)
        if saved.exists():
            self.facts = checkpoint.load(saved, self._state, self.optimisers)

    def step(self, feeder: Feeder, index: int, share: float) -> float:
        """Learn from one batch, at a share of the learning rates; give the loss."""
        batch = feeder.batch(index)
        with torch.autocast(self.model.device.type, torch.bfloat16):
            velocity = blocks.predict(self.model, self._block, batch)
        loss = (velocity.float() - batch.velocity).square().mean()
        self.flat.gradients.zero_()
        torch.autograd.backward(loss)
        if dist.is_initialized():
            dist.all_reduce(self.flat.gradients)
            self.flat.gradients /= dist.get_world_size()
        self.flat.gradients /= self.flat.gradients.norm().clamp(min=1)
        rates = {"muon": self.plan.muon_lr, "adamw": self.plan.adamw_lr}
        for name, optimiser in self.optimisers.items():
            set_learning_rate(optimiser, share * rates[name])
            optimiser.step()
        return loss.item()

    def follow(self, step: int) -> None:
        """Let the moving average follow the weights, faster at first."""
        self.average.lerp_(self.flat.weights, 1 - min(self.plan.ema, (1 + step) / (10 + step)))

    def save(self, step: int, loss: float) -> None:
        """Write the checkpoint after `step` steps."""
        facts = checkpoint.Facts(step=step, loss=loss)
        checkpoint.save(self._saved, self._state, self.optimisers, facts)

    def export(self, folder: Path, *, averaged: bool) -> None:
        """Write the model, with the weights as they are or averaged over the last steps."""
        now = self.flat.weights.clone()
        if averaged:
            self.flat.weights.copy_(self.average)
        unfinished = folder.with_suffix(".part")
        self.model.save_pretrained(unfinished)
        self.flat.weights.copy_(now)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)


def _optimisers(model: QwenImageTransformer2DModel) -> dict[str, torch.optim.Optimizer]:
    """Muon for matrices inside blocks; AdamW for modulation, embeddings, norms and biases."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, each in model.named_parameters():
        inside = name.startswith("transformer_blocks.") and "_mod." not in name
        (matrices if inside and each.ndim == _MATRIX else others).append(each)
    return {
        "muon": Muon(matrices, momentum=0.95),
        "adamw": torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0),
    }


def _train_stages(work: Path, plan: TransformerPlan, device: torch.device) -> None:
    """Train on this rank."""
    shallow = work / "transformer_shallow"
    if not shallow.exists():
        _train(build(plan, plan.blocks // 2), work, plan, device, last=False)
    if dist.is_initialized():
        dist.barrier()  # rank 0 has written what the others read now
    model = deepened(QwenImageTransformer2DModel.from_pretrained(shallow))
    _train(model, work, plan, device, last=True)


def _train(
    model: QwenImageTransformer2DModel,
    work: Path,
    plan: TransformerPlan,
    device: torch.device,
    *,
    last: bool,
) -> None:
    """Train one of the two stages, and write its model; now and then the average so far."""
    nn.Module.to(model, device)  # the model's own `to` has no proper types
    output = work / ("transformer" if last else "transformer_shallow")
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    training = Training(model, plan, output.with_name(output.name + "_checkpoint"))
    feeder = Feeder(work, plan.feed, [plan.seed, int(last)], rank, ranks, device)
    steps = plan.steps if last else plan.shallow_steps
    decay = int(plan.decay_share * steps) if last else 0
    loss, first = training.facts.loss, training.facts.step
    bar = tqdm(range(first, steps), output.name, initial=first, total=steps, disable=rank > 0)
    for step in bar:
        share = share_of_learning_rate(step, steps, plan.warm_up_steps, decay)
        loss += 0.02 * (training.step(feeder, step, share) - loss)
        training.follow(step)
        bar.set_postfix(loss=f"{loss:.4f}")
        if rank == 0 and (step + 1) % plan.checkpoint_steps == 0:
            training.save(step + 1, loss)
            training.export(work / "transformer_ema", averaged=True)
    if rank == 0:
        training.save(steps, loss)
        # The second stage goes on from the weights as they are; only what is final is averaged.
        training.export(output, averaged=last)


def main() -> None:
    """Train as one rank of several: `python -m ... WORK PLAN RANK`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("plan", type=lambda text: msgspec.json.decode(text, type=TransformerPlan))
    parser.add_argument("rank", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    meeting = f"file://{options.work.resolve() / 'rendezvous'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=options.rank, world_size=options.plan.ranks
    )
    _train_stages(options.work, options.plan, torch.device("cpu"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
