"""A batch in slices has the gradient of the batch, whatever looks at all of it."""

from dataclasses import dataclass, replace
from typing import Any, final

import pytest
import torch
from torch import Tensor

from saelab.activation_functions import BatchTopK, TopK
from saelab.distributed import ALONE, Ranks
from saelab.errors import ConfigError
from saelab.objectives import AuxK, Reconstruction, Step, Term
from saelab.sae import SAE
from saelab.training import Trainer
from saelab.training.config import TrainConfig
from saelab.training.inputs import slice_tokens
from tests.rank_cases import CONFIG, FAMILIES, store, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*latents")


@final
@dataclass(frozen=True)
class SquaredDensity(Term):
    """A term that is no mean over tokens: the square of a mean over the batch."""

    name = "squared_density"

    def __call__(self, step: Step) -> Tensor:
        return step.mean(step.forward.latents.sum() / step.forward.pairs.n_tokens).square()

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name}


def after(one: Trainer, steps: int = 25) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    rows = [one.step() for _ in range(steps)]
    return {name: value.clone() for name, value in one._state.tensors().items()}, rows


def assert_same(found: Trainer, expected: Trainer) -> None:
    tensors, rows = after(found)
    wanted, wanted_rows = after(expected)
    for name, value in wanted.items():
        gap = (tensors[name].double() - value.double()).norm()
        assert gap <= 1e-6 * value.double().norm(), name
    for row, wanted_row in zip(rows, wanted_rows, strict=True):
        assert row == pytest.approx(wanted_row, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_in_slices_equals_training_on_whole_batches(family: str) -> None:
    sliced = trainer(family, ALONE, config=replace(CONFIG, micro_batch_size=16))
    assert_same(sliced, trainer(family, ALONE))
    if any(term.name == "auxk" for term in sliced.terms):
        assert sliced._firing.dead(CONFIG.dead_after).any(), "AuxK has nothing to do in this test"


def test_a_term_that_squares_a_mean_over_the_batch_sees_that_of_the_whole_batch() -> None:
    def made(size: int | None) -> Trainer:
        sae = SAE(16, 48, BatchTopK(2.0), dtype=torch.float64)
        terms = (Reconstruction(), SquaredDensity(), AuxK())
        return Trainer(sae, store(), replace(CONFIG, micro_batch_size=size), terms=terms)

    assert_same(made(8), made(None))


def test_single_precision_agrees_to_a_millionth_over_the_first_steps() -> None:
    whole, sliced = (
        trainer("topk", ALONE, config=replace(CONFIG, micro_batch_size=size), dtype=torch.float32)
        for size in (None, 16)
    )
    for _ in range(3):
        whole.step()
        sliced.step()
    for name, value in whole.sae.named_parameters():
        gap = (sliced.sae.get_parameter(name) - value).norm()
        assert gap <= 1e-6 * value.norm(), name


def test_without_slices_nothing_changes_a_bit() -> None:
    whole = trainer("batchtopk", ALONE, dtype=torch.float32)
    sliced = trainer(
        "batchtopk", ALONE, config=replace(CONFIG, micro_batch_size=64), dtype=torch.float32
    )
    tensors, rows = after(whole, 5)
    again, rows_again = after(sliced, 5)
    assert rows == rows_again
    assert all(torch.equal(again[name], value) for name, value in tensors.items())


def test_a_caller_without_gradients_trains_all_the_same() -> None:
    inside, outside = trainer("topk", ALONE), trainer("topk", ALONE)
    with torch.no_grad():
        found = inside.step()
    assert found == outside.step()
    assert torch.equal(inside.sae.W_dec, outside.sae.W_dec)


def test_slices_must_be_equal() -> None:
    with pytest.raises(
        ConfigError, match=r"micro_batch_size=24\) must divide the batch_size of 64"
    ):
        TrainConfig(tokens=640, batch_size=64, micro_batch_size=24)
    config = TrainConfig(tokens=6400, batch_size=96, micro_batch_size=32)
    assert slice_tokens(config, ALONE) == 32
    assert slice_tokens(config, Ranks("latents", 0, 2)) == 32
    with pytest.raises(ConfigError, match="must divide the 48 tokens of a batch that each of 2"):
        slice_tokens(config, Ranks("tokens", 0, 2))


def test_the_gradient_is_autograds() -> None:
    """In slices, with AuxK at work: against plain autograd on the whole batch."""
    one = trainer("topk", ALONE, config=replace(CONFIG, micro_batch_size=16))
    for _ in range(10):
        one.step()
    sae = one.sae
    rows = store().sample(64, seed=3)
    dead = one._firing.dead(CONFIG.dead_after)
    assert dead.any()
    one._gradients({"planted": rows}, dead, 0.5)
    term = AuxK()
    inputs = rows.double() * sae.normalization.scale_in
    selection = term.selection(sae, dead)
    assert selection is not None and isinstance(sae.activation, TopK)
    forward = sae.forward_pairs(inputs, training=True, extra={"auxk": selection})
    step = Step(sae, forward, inputs, one.variance, None)
    (Reconstruction()(step) + term(step)).backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(one._gradients.of(name), parameter.grad)
