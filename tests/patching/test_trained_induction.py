"""A circuit that was learned: heads known by what they attend to, found by what they do."""

import pytest
import torch

from saelab.circuits.feature_effects import EffectsConfig
from saelab.errors import ConfigError
from saelab.patching import Experiment, edge_attribution, node_effects, rank_correlation
from saelab.patching.compiled_induction import compiled_induction, induction_pairs
from saelab.patching.trained_induction import (
    InductionTraining,
    prefix_matching_scores,
    previous_token_scores,
    successor_rows,
    train_induction,
)


def test_where_the_next_token_can_be_known_it_followed_before() -> None:
    rows, known = successor_rows(20, 24, 16, torch.Generator().manual_seed(0))
    assert not bool(rows[:, 0].any())
    assert bool((rows[:, 1:] > 0).all())
    assert int(known.sum()) > 40
    places: set[int] = set()
    for row, at in known[:, :-1].nonzero().tolist():
        tokens = rows[row].tolist()
        earlier = tokens.index(tokens[at])
        assert earlier < at
        assert tokens[earlier + 1] == tokens[at + 1]
        places.add(at - earlier)
    assert len(places) > 6  # at no fixed distance


def test_scores_know_the_heads_that_were_written() -> None:
    module = compiled_induction(50.0).module  # type: ignore[attr-defined]
    rows, known = successor_rows(20, 16, 16, torch.Generator().manual_seed(0))
    previous = previous_token_scores(module, rows)
    assert float(previous[0, 0]) > 0.99
    assert float(previous.flatten()[1:].max()) < 0.5
    matching = prefix_matching_scores(module, rows, known)
    assert float(matching[1, 0]) > 0.99
    assert float(matching.flatten()[:3].max()) < 0.5


def test_training_is_reproducible_and_lowers_the_loss() -> None:
    losses: list[float] = []
    config = InductionTraining(steps=30, d_model=16, n_heads=2, length=12, d_vocab=8)
    one = train_induction(config, progress=lambda *what: losses.append(what[2]))
    again = train_induction(config)
    tokens = torch.arange(8)[None]
    assert torch.equal(one.logits(tokens), again.logits(tokens))
    assert losses[-1] < losses[0]
    with pytest.raises(ConfigError, match="10 tokens"):
        InductionTraining(length=5)


@pytest.mark.slow
def test_methods_find_the_heads_that_training_made() -> None:
    model = train_induction()
    module = model.module  # type: ignore[attr-defined]
    rows, known = successor_rows(64, 28, 32, torch.Generator().manual_seed(9))
    previous = previous_token_scores(module, rows)
    matching = prefix_matching_scores(module, rows, known)
    before, induction = int(previous[0].argmax()), int(matching[1].argmax())
    assert float(previous[0, before]) > 0.5
    assert float(matching[1, induction]) > 0.5
    pairs = induction_pairs(24, length=20, d_vocab=32)
    one = Experiment(model, pairs)
    assert one.clean > 5.0
    exact = node_effects(one)
    integrated = edge_attribution(one, EffectsConfig(steps=5))
    assert f"a1.h{induction}" in exact.ranked()[:3]
    sizes = exact.values().abs(), integrated.nodes().values().abs()
    assert rank_correlation(*sizes) > 0.7
