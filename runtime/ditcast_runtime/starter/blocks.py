"""The transformer's forward pass as training runs it: the model's weights, arranged to be fast.

`predict` gives what `QwenImageTransformer2DModel.forward` gives, and the same gradients, to the
precision of bfloat16. It differs in four ways, each of which a profile asked for:

- Queries and keys are turned by their positions with real numbers; the model uses complex ones,
  for which no code can be generated. The quarter turn inside is a permutation of features with
  signs, which is applied to the weights of the projection, so that it costs nothing per token.
- The five projections of a stream (query, turned query, key, turned key, value) are one product.
- Attention is written out: at 16 features a head, PyTorch's fused attention takes five times
  longer on the way back.
- GELU and softmax have gradients of their own, of the fewest operations; softmax keeps its result
  instead of computing exponentials again.

Shapes: n samples, s image tokens, l text tokens, h heads of d features, w = h d features in all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers.models.transformers.transformer_qwenimage import (
    QwenImageTransformer2DModel,
    QwenImageTransformerBlock,
)
from torch import Tensor, nn

from ditcast_runtime.starter.batches import Batch

_EPSILON = 1e-6
_MASKED = -1e4

Angles = tuple[Tensor, Tensor]
"""Cosine and sine of each token's turn, (tokens, 1, d) each."""

Block = Callable[
    [QwenImageTransformerBlock, Tensor, Tensor, Tensor, Angles, Angles, Tensor],
    tuple[Tensor, Tensor],
]


def predict(model: QwenImageTransformer2DModel, block: Block, batch: Batch) -> Tensor:
    """Give the velocity (n, s, 32) of a batch; `block` is `transform`, or that compiled."""
    image = model.img_in(batch.noisy)
    text = model.txt_in(model.txt_norm(batch.states))
    condition = model.time_text_embed(batch.times, image)
    tables = model.pos_embed([(1, *batch.grid)], image.device, text.shape[1])
    image_angles, text_angles = (_angles(table) for table in tables)
    bias = torch.zeros(batch.mask.shape, device=image.device).masked_fill(~batch.mask, _MASKED)
    bias = F.pad(bias, (0, image.shape[1]))[:, None, None]
    # The residual streams stay in float32: 40 additions in bfloat16 would blur small details.
    image, text = image.float(), text.float()
    layers: Any = model.transformer_blocks
    for layer in layers:
        image, text = block(layer, image, text, condition, image_angles, text_angles, bias)
    velocity: Tensor = model.proj_out(model.norm_out(image, condition))
    return velocity


def transform(
    block: QwenImageTransformerBlock,
    image: Tensor,
    text: Tensor,
    condition: Tensor,
    image_angles: Angles,
    text_angles: Angles,
    bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run one block: image (n, s, w), text (n, l, w), condition (n, w), bias (n, 1, 1, l + s)."""
    attention: Any = block.attn
    image_mod = block.img_mod(condition)[:, None].float().chunk(6, dim=-1)
    text_mod = block.txt_mod(condition)[:, None].float().chunk(6, dim=-1)
    of_image = _project(
        _modulated(image, image_mod[:2], condition.dtype),
        (attention.to_q, attention.to_k, attention.to_v),
        (attention.norm_q, attention.norm_k),
        image_angles,
    )
    of_text = _project(
        _modulated(text, text_mod[:2], condition.dtype),
        (attention.add_q_proj, attention.add_k_proj, attention.add_v_proj),
        (attention.norm_added_q, attention.norm_added_k),
        text_angles,
    )
    queries, keys, values = (
        torch.cat(pair, dim=1).transpose(1, 2).contiguous()
        for pair in zip(of_text, of_image, strict=True)
    )
    seen = (_softmax(queries @ keys.mT, bias) @ values).transpose(1, 2).flatten(2)
    length = text.shape[1]
    image = image + image_mod[2] * attention.to_out[0](seen[:, length:])
    text = text + text_mod[2] * attention.to_add_out(seen[:, :length])
    image = image + image_mod[5] * _think(
        block.img_mlp, _modulated(image, image_mod[3:5], condition.dtype)
    )
    text = text + text_mod[5] * _think(
        block.txt_mlp, _modulated(text, text_mod[3:5], condition.dtype)
    )
    return image, text


def _angles(table: Tensor) -> Angles:
    """Turn a complex table (tokens, d/2) into cosines and sines, each value twice in a row."""
    cosine, sine = table.real, table.imag
    return cosine.repeat_interleave(2, dim=1)[:, None], sine.repeat_interleave(2, dim=1)[:, None]


def _modulated(x: Tensor, modulation: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    shift, scale = modulation
    normal = F.layer_norm(x, (x.shape[-1],), eps=_EPSILON)
    return (normal * (1 + scale) + shift).to(dtype)


def _think(mlp: Any, x: Tensor) -> Tensor:
    thought: Tensor = mlp.net[2](_gelu(mlp.net[0].proj(x)))
    return thought


def _project(
    x: Tensor,
    linears: tuple[nn.Linear, nn.Linear, nn.Linear],
    norms: tuple[nn.Module, nn.Module],
    angles: Angles,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give queries, scaled by 1 / sqrt(d), keys and values of a stream, (n, tokens, h, d) each.

    A query is q = r (g * y), with y the projection, g the norm's weight and r one over the root of
    the mean square of y in its head. Turned by its position it is q * cos + turn(q) * sin, where
    turn makes (-b, a) of each pair of features (a, b): a projection with other weights.
    """
    to_query, to_key, to_value = linears
    gains = [norm.get_parameter("weight") for norm in norms]
    features = gains[0].shape[0]
    heads = to_value.out_features // features
    parts: list[tuple[Tensor, Tensor]] = []
    for linear, gain in zip((to_query, to_key), gains, strict=True):
        repeated = gain.repeat(heads)
        parts.append((linear.weight, linear.bias))
        parts.append((_turn(linear.weight * repeated[:, None]), _turn(linear.bias * repeated)))
    parts.append((to_value.weight, to_value.bias))
    weight, bias = (torch.cat(each) for each in zip(*parts, strict=True))
    y = F.linear(x, weight, bias).unflatten(-1, (5, heads, features))
    query, turned_query, key, turned_key, value = y.unbind(-3)
    queries = _rotated(query, turned_query, gains[0] * features**-0.5, angles, features**-0.5)
    return queries, _rotated(key, turned_key, gains[1], angles, 1.0), value


def _rotated(y: Tensor, turned: Tensor, gain: Tensor, angles: Angles, scale: float) -> Tensor:
    cosine, sine = angles
    wide = y.float()
    inverse = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + _EPSILON)
    return (inverse * (wide * gain * cosine + turned.float() * scale * sine)).to(y.dtype)


def _turn(rows: Tensor) -> Tensor:
    """Make (-b, a) of each pair of rows (a, b)."""
    first, second = rows.unflatten(0, (-1, 2)).unbind(1)
    return torch.stack((-second, first), dim=1).flatten(0, 1)


class _Gelu(torch.autograd.Function):
    """GELU in its tanh form, which is x sigmoid(u(x)), with its derivative in the same terms."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        steepness, cubic = 1.5957691216057308, 0.044715  # 2 sqrt(2 / pi), and GELU's own
        wide = x.float()
        square = wide * wide
        gate = torch.sigmoid(steepness * wide * (1 + cubic * square))
        slope = gate + wide * gate * (1 - gate) * steepness * (1 + 3 * cubic * square)
        ctx.save_for_backward(slope.to(x.dtype))
        return (wide * gate).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        result: Tensor = grad_outputs[0] * slope
        return result


class _Softmax(torch.autograd.Function):
    """Softmax of scores + bias; keeps its result.

    It does not subtract the largest score first: queries and keys are normalised, so that no
    score is large.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, bias: Tensor) -> Tensor:
        exponentials = (scores.float() + bias).exp()
        shares = (exponentials * exponentials.sum(dim=-1, keepdim=True).reciprocal()).to(
            scores.dtype
        )
        ctx.save_for_backward(shares)
        return shares

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,), (kept,) = grad_outputs, ctx.saved_tensors
        shares = kept.float()
        product = gradient.float() * shares
        return (product - shares * product.sum(dim=-1, keepdim=True)).to(gradient.dtype), None


# PyTorch says nothing of the types of `apply`.
_gelu: Callable[[Tensor], Tensor] = _Gelu.apply
_softmax: Callable[[Tensor, Tensor], Tensor] = _Softmax.apply
