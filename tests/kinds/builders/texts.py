"""Tokenizers that take single letters, and text encoders of noise, made on the spot."""

from __future__ import annotations

import string
from typing import Any, TypeVar

from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    LlamaConfig,
    LlamaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WIDTH = 16
"""Width of every text encoder."""
LAYERS = 2
HEADS = 2
LETTERS = [each for each in string.printable if not each.isspace()]

_Clip = TypeVar("_Clip", CLIPTextModel, CLIPTextModelWithProjection)
_Llama = TypeVar("_Llama", bound=PreTrainedModel)

_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def clip_tokenizer() -> CLIPTokenizer:
    """Take single letters, each with and without the end of a word."""
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip(kind: type[_Clip], positions: int = 77) -> _Clip:
    """Make an encoder for `clip_tokenizer`, of texts of so many tokens at most."""
    words = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=positions,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return kind(config)


def t5_tokenizer() -> T5Tokenizer:
    """Take single letters, and a mark for the beginning of a word."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    return T5Tokenizer(vocab=[*pieces, *((letter, -1.0) for letter in LETTERS)], extra_ids=0)


def t5(width: int = WIDTH) -> T5EncoderModel:
    """Make an encoder for `t5_tokenizer`."""
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=width,
        d_kv=WIDTH // HEADS,
        d_ff=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
    )
    return T5EncoderModel(config)


def umt5() -> UMT5EncoderModel:
    """Make the other encoder for `t5_tokenizer`."""
    config = UMT5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=WIDTH,
        d_kv=WIDTH // HEADS,
        d_ff=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
    )
    return UMT5EncoderModel(config)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Take single bytes, and the marks of a conversation."""
    words = [*sorted(ByteLevel.alphabet()), *_SPECIAL]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        additional_special_tokens=list(_SPECIAL[1:]),
        extra_special_tokens={"image_token": "<|image_pad|>"},
    )
    tokenizer.chat_template = _CHAT
    return tokenizer


def mistral() -> Mistral3ForConditionalGeneration:
    """Make an encoder for `qwen_tokenizer` with the 30 layers of which FLUX.2 takes three."""
    words = qwen_tokenizer()
    text = {"model_type": "mistral", **_decoder_options(len(words)), "num_hidden_layers": 31}
    vision = {
        "model_type": "pixtral",
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "image_size": 32,
        "patch_size": 8,
    }
    picture: Any = words.convert_tokens_to_ids("<|image_pad|>")
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=picture)
    return Mistral3ForConditionalGeneration(config)


def qwen_vl() -> Qwen2_5_VLForConditionalGeneration:
    """Make an encoder for `qwen_tokenizer` that takes pictures too."""
    words = qwen_tokenizer()
    ids: dict[str, Any] = {token: words.convert_tokens_to_ids(token) for token in _SPECIAL}
    text = _decoder_options(len(words)) | {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 2],
        },
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_heads": HEADS,
        "out_hidden_size": WIDTH,
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


def qwen3(kind: type[_Llama], layers: int = LAYERS) -> _Llama:
    """Make the other encoder for `qwen_tokenizer`."""
    options = _decoder_options(len(qwen_tokenizer())) | {"num_hidden_layers": layers}
    return kind(Qwen3Config(**options, head_dim=WIDTH // HEADS))


def llama_tokenizer() -> LlamaTokenizer:
    """Take single letters."""
    words = ["<unk>", "<s>", "</s>", "<pad>", "▁", *LETTERS]
    vocabulary = {word: number for number, word in enumerate(words)}
    padding = words[3]
    return LlamaTokenizer(vocab=vocabulary, merges=[], pad_token=padding, model_max_length=512)


def llama(kind: type[_Llama], layers: int = LAYERS) -> _Llama:
    """Make an encoder for `llama_tokenizer`."""
    options = _decoder_options(len(llama_tokenizer())) | {"num_hidden_layers": layers}
    return kind(LlamaConfig(**options, pad_token_id=3))


def gemma_tokenizer() -> GemmaTokenizer:
    """Take single letters."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    vocabulary = {word: number for number, word in enumerate(words)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=512)


def gemma() -> Gemma2Model:
    """Make an encoder for `gemma_tokenizer`."""
    options = _decoder_options(len(gemma_tokenizer()))
    return Gemma2Model(Gemma2Config(**options, head_dim=WIDTH // HEADS))


def _decoder_options(vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
    }
