"""What training runs in place of the models' own forward passes, and what it keeps on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel

from ditcast_runtime.starter import blocks, checkpoint, transformer, vae
from ditcast_runtime.starter.batches import Batch
from ditcast_runtime.starter.muon import Muon
from ditcast_runtime.starter.planes import Planes
from ditcast_runtime.starter.schedule import share_of_learning_rate

PLAN = transformer.TransformerPlan(blocks=2, compiled=False)


@pytest.fixture
def model() -> QwenImageTransformer2DModel:
    """A shallow transformer that has learned something, so that every weight matters."""
    made = transformer.build(PLAN, 2)
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


@pytest.fixture
def batch() -> Batch:
    """Three pictures of 6 tokens, one of whose captions is shorter."""
    torch.manual_seed(1)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    return Batch(
        noisy=torch.randn(3, 6, 32),
        velocity=torch.randn(3, 6, 32),
        times=torch.rand(3),
        states=torch.randn(3, 5, 128) * mask[..., None],
        mask=mask,
        grid=(2, 3),
    )


def _velocity(model: QwenImageTransformer2DModel, batch: Batch) -> torch.Tensor:
    velocity: torch.Tensor = model(
        hidden_states=batch.noisy,
        encoder_hidden_states=batch.states,
        encoder_hidden_states_mask=batch.mask,
        timestep=batch.times,
        img_shapes=[(1, *batch.grid)] * len(batch.noisy),
        return_dict=False,
    )[0]
    return velocity


def test_training_runs_the_transformer_as_it_is(
    model: QwenImageTransformer2DModel, batch: Batch
) -> None:
    """The fast forward pass gives the model's velocities and gradients."""
    gradients = []
    for velocity in (_velocity(model, batch), blocks.predict(model, blocks.transform, batch)):
        (velocity - batch.velocity).square().mean().backward()
        gradients.append({name: each.grad for name, each in model.named_parameters()})
        model.zero_grad()
    torch.testing.assert_close(
        blocks.predict(model, blocks.transform, batch),
        _velocity(model, batch),
        atol=1e-4,
        rtol=1e-3,
    )
    for name, expected in gradients[0].items():
        if expected is None:
            # The last block's text stream goes nowhere.
            continue
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-5, rtol=1e-2, msg=name)


def test_a_deeper_transformer_begins_as_the_shallow_one(
    model: QwenImageTransformer2DModel, batch: Batch
) -> None:
    """What the first stage has learned is there when the second begins."""
    deep = transformer.deepened(model)
    assert len(deep.transformer_blocks) == 4
    torch.testing.assert_close(_velocity(deep, batch), _velocity(model, batch))


def test_training_runs_the_autoencoder_as_it_is() -> None:
    """2D convolutions give what the video model gives for one frame."""
    model = vae.build(0)
    planes = Planes(model, compiled=False)
    pictures = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        (posterior,) = model.encode(pictures[:, :, None], return_dict=False)
        (made,) = model.decode(posterior.mean, return_dict=False)
        mean, log_variance = planes.encode(pictures)
        torch.testing.assert_close(mean, posterior.mean[:, :, 0])
        torch.testing.assert_close(log_variance, posterior.logvar[:, :, 0])
        torch.testing.assert_close(planes.decode(mean).clamp(-1, 1), made[:, :, 0])


def test_muon_moves_weights_by_nearly_orthogonal_steps() -> None:
    """Each direction of a weight moves about as far, whatever its gradient's size."""
    weights = [torch.nn.Parameter(torch.zeros(16, 24)) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.randn(16, 24) * 1e-3
    Muon(weights, lr=1.0).step()
    for weight in weights:
        lengths = torch.linalg.svdvals(weight.detach()) / (0.2 * 24**0.5)
        assert 0.6 < lengths.min() < lengths.max() < 1.3


def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """Weights and both optimisers' states come back."""
    runs = [
        transformer.Training(transformer.build(PLAN, 2), PLAN, tmp_path / name) for name in "ab"
    ]

    def move(run: transformer.Training, seed: int) -> None:
        torch.manual_seed(seed)
        run.flat.gradients.normal_()
        for optimiser in run.optimisers.values():
            optimiser.step()

    move(runs[0], 1)
    runs[0].save(1, 0.5)
    again = transformer.Training(transformer.build(PLAN, 2), PLAN, tmp_path / "a")
    assert again.facts == checkpoint.Facts(step=1, loss=0.5)
    move(runs[0], 2)
    move(again, 2)
    assert torch.equal(again.flat.weights, runs[0].flat.weights)
    assert not torch.equal(again.flat.weights, runs[1].flat.weights)


def test_learning_rates_rise_stay_and_fall() -> None:
    """The last step of a stage with decay hardly moves, one without goes on at full rate."""
    shares = [share_of_learning_rate(step, 10, 2, 4) for step in range(10)]
    assert shares == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert share_of_learning_rate(9, 10, 2, 0) == 1
