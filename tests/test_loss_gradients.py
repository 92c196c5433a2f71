"""The gradient of the model's loss at hook points, and its way into a store."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from saelab.errors import ConfigError, HookPointError, ModelError
from saelab.harvesting import harvest
from saelab.models import load_model
from saelab.models.loss_gradients import loss_gradients
from saelab.models.torch_model import TorchModel
from saelab.store import ActivationStore
from saelab.store.capture import HarvestConfig
from tests.harvest_cases import SMALL, rows_of_tokens, tiny_model
from tests.tiny_models import tiny_gpt2, tiny_llama

EXACT = HarvestConfig(dtype="float32", outlier_factor=None, rows_per_batch=1)
RESIDUAL = "blocks.1.hook_resid_post"


def models():
    return [
        pytest.param(lambda: load_model(tiny_llama(), name="llama", device="cpu"), id="llama"),
        pytest.param(lambda: load_model(tiny_gpt2(), name="gpt2", device="cpu"), id="gpt2"),
    ]


def some_tokens(rows=3, length=7, seed=1):
    return torch.randint(1, 250, (rows, length), generator=torch.Generator().manual_seed(seed))


def summed_loss(model, tokens, predicted=None):
    logits = model.logits(tokens).double()[:, :-1]
    chosen = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return -(chosen if predicted is None else chosen * predicted[:, 1:]).sum().item()


@pytest.mark.parametrize("make", models())
def test_moving_the_activation_changes_the_loss_as_the_gradient_says(make):
    model, tokens = make(), some_tokens()
    gradient = loss_gradients(model, tokens, [RESIDUAL])[RESIDUAL]
    assert gradient.shape == (3, 7, 32)
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(2))
    step, found = 1e-2, []
    for sign in (1, -1):
        with model.editing({RESIDUAL: lambda x, sign=sign: x + sign * step * direction}):
            found.append(summed_loss(model, tokens))
    slope = (found[0] - found[1]) / (2 * step)
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=5e-3)


def test_two_places_at_once_give_what_each_gives_alone():
    model, tokens = load_model(tiny_llama(), name="llama", device="cpu"), some_tokens()
    hooks = ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    together = loss_gradients(model, tokens, hooks)
    for hook in hooks:
        torch.testing.assert_close(together[hook], loss_gradients(model, tokens, [hook])[hook])


def test_the_sum_does_not_depend_on_what_else_is_in_the_batch(monkeypatch):
    model, tokens = load_model(tiny_llama(), name="llama", device="cpu"), some_tokens()
    whole = loss_gradients(model, tokens, [RESIDUAL])[RESIDUAL]
    alone = loss_gradients(model, tokens[1:2], [RESIDUAL])[RESIDUAL]
    torch.testing.assert_close(whole[1:2], alone)
    monkeypatch.setattr("saelab.models.loss_gradients.LOGITS_AT_ONCE", 1)  # row by row
    torch.testing.assert_close(loss_gradients(model, tokens, [RESIDUAL])[RESIDUAL], whole)


def test_only_predicted_tokens_count():
    model, tokens = load_model(tiny_llama(), name="llama", device="cpu"), some_tokens()
    predicted = torch.zeros_like(tokens, dtype=torch.bool)
    predicted[:, 4] = True
    gradient = loss_gradients(model, tokens, [RESIDUAL], predicted)[RESIDUAL]
    assert not gradient[:, 4:].any() and gradient[:, 3].abs().sum() > 0
    # The last position predicts nothing.
    assert not loss_gradients(model, tokens, [RESIDUAL])[RESIDUAL][:, -1].any()


def test_the_model_is_left_as_it_was():
    model = load_model(tiny_llama(), name="llama", device="cpu")
    assert isinstance(model, TorchModel)
    asked = [p.requires_grad for p in model.module.parameters()]
    before = model.logits(some_tokens())
    loss_gradients(model, some_tokens(), [RESIDUAL])
    assert torch.equal(model.logits(some_tokens()), before)
    assert [p.requires_grad for p in model.module.parameters()] == asked
    assert all(p.grad is None for p in model.module.parameters())


def test_a_place_that_is_none_is_refused():
    model = load_model(tiny_llama(), name="llama", device="cpu")
    with pytest.raises(ConfigError, match="at least one hook point"):
        loss_gradients(model, some_tokens(), [])
    with pytest.raises(HookPointError):
        loss_gradients(model, some_tokens(), ["blocks.9.hook_resid_post"])
    with pytest.raises(ModelError, match="offers no gradients"):
        loss_gradients(cast(Any, _Other(model)), some_tokens(), [RESIDUAL])


class _Other:
    """The protocol of a language model without being one of ours."""

    def __init__(self, model):
        self._model = model

    def __getattr__(self, name):
        return getattr(self._model, name)


def test_harvested_gradients_lie_beside_their_activations(tmp_path: Path):
    tokens, hook = rows_of_tokens(), "blocks.1.output"
    store = harvest(tiny_model(), tokens, [hook, f"{hook}.grad"], tmp_path / "acts", **SMALL)
    assert store.hook == hook and store.widths == {hook: 16, f"{hook}.grad": 16}
    batch = next(store.batches(64, seed=3, hooks=store.hooks))
    plain = harvest(tiny_model(), tokens, [hook], tmp_path / "plain", **SMALL)
    alone = next(plain.batches(64, seed=3))
    assert torch.equal(batch.activations[hook], alone.activations)
    # The rows by hand: the model's own gradient at each address.
    expected = loss_gradients(tiny_model(), tokens.ids.long(), [hook], tokens.document >= 0)[hook]
    rows = store.rows(0, store.n_tokens, store.hooks)
    at = rows.addresses
    by_hand = expected[at.row.long(), at.position.long()]
    torch.testing.assert_close(rows.activations[f"{hook}.grad"], by_hand, rtol=1e-4, atol=1e-6)
    assert store.manifest is not None and store.manifest.hooks[1].norm_limit is None


def test_a_harvest_of_gradients_is_the_same_after_an_interruption(tmp_path: Path):
    tokens, hooks = rows_of_tokens(), ["blocks.1.output", "blocks.1.output.grad"]
    whole = harvest(tiny_model(), tokens, hooks, tmp_path / "whole", **SMALL)

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(Exception, match="Run the same command again"):
        harvest(tiny_model(), tokens, hooks, tmp_path / "parts", **SMALL, progress=stop)
    again = harvest(tiny_model(), tokens, hooks, tmp_path / "parts", **SMALL)
    for hook in hooks:
        assert torch.equal(again.at(hook).sample(200, seed=1), whole.at(hook).sample(200, seed=1))


def test_tokens_of_another_document_are_not_predicted():
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    document = torch.tensor([[0, 0, 0, 1, 1, 1]], dtype=torch.int32)
    tokens = rows_of_tokens(1, 6)
    kept = torch.ones_like(ids, dtype=torch.bool)
    tokens = type(tokens)(ids, document, kept, ["a", "b"], None, tokens.corpus)
    hook = "blocks.2.output"
    store = ActivationStore.stream(tiny_model(), tokens, [f"{hook}.grad"], config=EXACT)
    found = next(store.batches(6)).activations
    # After block 2 nothing mixes positions, so position 2, whose next token is b's, has no slope.
    silent = (found == 0).all(dim=1)
    assert silent.sum() == 2  # positions 2 and 5
