"""The text encoder: a tiny Qwen2.5-VL that learns to understand captions before any picture.

It is trained to name everything that a caption says (colour, shape and size of each thing, their
arrangement, the background), read off the last tokens of its output by linear probes that are
thrown away afterwards. Then it is frozen. Which colour belongs to which shape is thus settled in
the cheap model; the transformer only has to learn to draw.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from ditcast_runtime.starter import scenes
from ditcast_runtime.starter.assemble import partial_pipeline
from ditcast_runtime.starter.tokenizer import template, train_tokenizer

NULL_PROMPT = " "
"""What the pipeline's users pass for "no prompt"; the transformer is trained with it, too."""

_EMPTY_PROMPTS = ("", " ", "  ")
_EMPTY_SHARE = 0.03
_TWO_THINGS_SHARE = 0.8  # they are the hard ones, so they are seen more often than in pictures
_PROBED_TOKENS = 5  # of the template's end: "<|im_end|>\n<|im_start|>assistant\n"
_NOTHING = "none"
_Answers = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderPlan:
    """How long the text encoder is trained, and how."""

    steps: int = 700
    batch_size: int = 96
    learning_rate: float = 2e-3
    seed: int = 0
    hidden_size: int = 128
    """Also the transformer's `joint_attention_dim`."""


TINY = TextEncoderPlan(steps=3, batch_size=8)
"""To see that it works."""


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """One thing to be read off a caption."""

    name: str
    answers: _Answers


_SLOTS = ("first", "second")
QUESTIONS: tuple[Question, ...] = (
    Question("layout", (_NOTHING, "single", *(scenes.Relation.LEFT, scenes.Relation.ABOVE))),
    Question("background", (_NOTHING, *scenes.Color)),
    *(Question(f"{slot} color", (_NOTHING, *scenes.Color)) for slot in _SLOTS),
    *(Question(f"{slot} shape", (_NOTHING, *scenes.Shape)) for slot in _SLOTS),
    *(Question(f"{slot} size", (_NOTHING, *scenes.Size)) for slot in _SLOTS),
)
"""About the scene as arranged: the first thing is the left or upper one, whatever is said first."""


class Encoder:
    """A trained text encoder, used exactly as the pipeline uses it."""

    def __init__(self, text_encoder: Any, tokenizer: Qwen2Tokenizer) -> None:
        self._pipe = partial_pipeline(text_encoder=text_encoder, tokenizer=tokenizer)

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Read the folders `text_encoder` and `tokenizer` below `folder`."""
        text_encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / "text_encoder", dtype=torch.float32
        )
        return cls(text_encoder, Qwen2Tokenizer.from_pretrained(folder / "tokenizer"))

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Give (states, mask): float32 (n, length, width), zero where padded; bool (n, length)."""
        states, mask = self._pipe.encode_prompt(captions)
        if mask is None:  # the pipeline's way to say that nothing is padded
            return states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return states, mask.bool()


def train_text_encoder(folder: Path, plan: TextEncoderPlan, device: torch.device) -> None:
    """Train tokenizer and text encoder, and write them to `folder/{tokenizer,text_encoder}`.

    Raises:
        ValueError: the template does not begin with the number of tokens that the pipeline drops.
    """
    torch.manual_seed(plan.seed)
    rng = np.random.default_rng(plan.seed)
    tokenizer = train_tokenizer(plan.seed)
    # Before it is used: how it padded and cut the last texts would be saved with it.
    tokenizer.save_pretrained(folder / "tokenizer")
    model = build(tokenizer, plan.hidden_size).to(device).train()
    probes = _probes(plan.hidden_size).to(device)
    parameters = [*model.model.language_model.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_and_cosine(step, plan.steps)
    )
    progress = tqdm(range(plan.steps), desc="text encoder", unit="step")
    for _ in progress:
        loss = _loss(model, probes, tokenizer, _batch(rng, plan.batch_size), device)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    _report(model, probes, tokenizer)
    model.cpu().save_pretrained(folder / "text_encoder")


def build(tokenizer: Qwen2Tokenizer, hidden_size: int) -> Any:
    """Make an untrained Qwen2.5-VL, tiny in every direction; its eye is never used."""
    ids: dict[str, Any] = {
        token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens
    }
    head_size = hidden_size // 4
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": 3 * hidden_size,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            # Time, height and width of a position, as in the large model: 1 to 1.5 to 1.5.
            "mrope_section": [head_size // 8, 3 * head_size // 16, 3 * head_size // 16],
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": hidden_size,
        "fullatt_block_indexes": [0],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def answers(scene: scenes.Scene | None) -> _Answers:
    """Give the right answer to each of `QUESTIONS`; None is the empty prompt."""
    if scene is None:
        return (_NOTHING,) * len(QUESTIONS)
    scene = scene.arranged()
    things = [*scene.things, None][:2]
    fields = ("color", "shape", "size")
    layout = scene.relation or "single"
    about_things = [getattr(thing, field, _NOTHING) for field in fields for thing in things]
    return (layout, scene.background, *about_things)


def accuracy(encoder: Encoder, probes: nn.Module, samples: list[tuple[str, _Answers]]) -> float:
    """Give the share of captions for which each probe gives every answer rightly."""
    states, mask = encoder.encode([text for text, _ in samples])
    guesses = probes(_last_tokens(states, mask))
    wanted = _indices([answer for _, answer in samples]).to(states.device)
    right = [
        part.argmax(-1) == wanted[:, None, index]
        for index, part in enumerate(_per_question(guesses))
    ]
    return torch.stack(right).all(0).all(-1).float().mean().item()


def warm_up_and_cosine(step: int, steps: int) -> float:
    """Give the factor of the learning rate: up in 50 steps, then down to 0 at the end."""
    return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _probes(hidden_size: int) -> nn.Linear:
    return nn.Linear(hidden_size, sum(len(question.answers) for question in QUESTIONS))


def _per_question(logits: Tensor) -> tuple[Tensor, ...]:
    lengths = [len(question.answers) for question in QUESTIONS]
    return torch.split(logits, lengths, dim=-1)


def _indices(rows: list[_Answers]) -> Tensor:
    """Turn answers into their places in the lists: int64 (rows, questions)."""
    return torch.tensor(
        [
            [
                question.answers.index(answer)
                for question, answer in zip(QUESTIONS, row, strict=True)
            ]
            for row in rows
        ]
    )


def _batch(rng: np.random.Generator, size: int) -> list[tuple[str, _Answers]]:
    return [_sample(rng) for _ in range(size)]


def _sample(rng: np.random.Generator) -> tuple[str, _Answers]:
    if rng.random() < _EMPTY_SHARE:
        return str(rng.choice(_EMPTY_PROMPTS)), answers(None)
    two_things = rng.random() < _TWO_THINGS_SHARE
    while (len((scene := scenes.sample_trained(rng)).things) > 1) != two_things:
        pass
    return scenes.caption(scene, rng), answers(scene)


def _loss(
    model: Any,
    probes: nn.Linear,
    tokenizer: Qwen2Tokenizer,
    batch: list[tuple[str, _Answers]],
    device: torch.device,
) -> Tensor:
    """Sum the cross entropies of all questions, asked at each of the probed tokens."""
    texts = [template().format(text) for text, _ in batch]
    tokens = tokenizer(texts, padding=True, return_tensors="pt").to(device)
    with torch.autocast(device.type, torch.bfloat16):
        states = model.model(**tokens).last_hidden_state
    logits = probes(_last_tokens(states.float(), tokens.attention_mask.bool()))
    wanted = _indices([row for _, row in batch]).to(device)
    loss = torch.zeros((), device=device)
    for index, part in enumerate(_per_question(logits)):
        repeated = wanted[:, index, None].expand(-1, _PROBED_TOKENS)
        loss = loss + nn.functional.cross_entropy(part.flatten(0, 1), repeated.flatten())
    return loss


def _last_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Pick the states of the last tokens before the padding: (n, `_PROBED_TOKENS`, width)."""
    ends = mask.sum(1, keepdim=True)
    places = ends - torch.arange(_PROBED_TOKENS, 0, -1, device=states.device)
    picked: Tensor = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
    return picked


def _report(
    model: Any,
    probes: nn.Linear,
    tokenizer: Qwen2Tokenizer,
) -> None:
    rng = np.random.default_rng(1)
    held_out = [scenes.sample_held_out(rng) for _ in range(400)]
    samples = [(scenes.caption(scene, rng), answers(scene)) for scene in held_out]
    right = accuracy(Encoder(model.eval(), tokenizer), probes, samples)
    tqdm.write(f"text encoder: {right:.1%} of 400 held-out captions understood in every respect")
