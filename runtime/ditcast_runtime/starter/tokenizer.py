"""A small vocabulary for Qwen's tokenizer, learned from the captions.

The pipeline puts each prompt into a fixed template and drops the first 34 tokens of what the text
encoder makes of it, because in Qwen's vocabulary the template's beginning is 34 tokens long. So it
has to be in this one: every word of the template must be one token.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from ditcast_runtime.starter import scenes
from ditcast_runtime.starter.assemble import partial_pipeline

SPECIAL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_CAPTIONS = 20_000
_MIN_FREQUENCY = 50
_VOCABULARY_LIMIT = 1024  # never reached: the words run out first


def train_tokenizer(seed: int) -> Qwen2Tokenizer:
    """Learn a vocabulary in which the template and the words of the captions are whole tokens."""
    rng = np.random.default_rng(seed)
    texts = [scenes.caption(scenes.sample_trained(rng), rng) for _ in range(_CAPTIONS)]
    texts += [template()] * (10 * _MIN_FREQUENCY)
    learned = json.loads(_learn(texts).to_str())["model"]
    merges: Any = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        extra_special_tokens=list(SPECIAL_TOKENS),
    )
    length = len(tokenizer(template().split("{}")[0])["input_ids"])
    if length != dropped_tokens():
        raise ValueError(f"the template begins with {length} tokens, not {dropped_tokens()}")
    return tokenizer


def template() -> str:
    """Give the text that the pipeline puts around each prompt, with `{}` in the prompt's place."""
    return str(partial_pipeline().prompt_template_encode)


def dropped_tokens() -> int:
    """Say how many tokens the pipeline drops at the beginning."""
    return int(partial_pipeline().prompt_template_encode_start_idx)


def _learn(texts: list[str]) -> Tokenizer:
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    # As Qwen2Tokenizer splits: merges learned across other borders would never apply.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY_LIMIT,
        min_frequency=_MIN_FREQUENCY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # so that any UTF-8 can be said
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return learner
