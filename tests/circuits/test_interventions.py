"""Predicted effects against effects that are measured in the running model."""

import pytest
import torch

from saelab.circuits import (
    LocalReplacement,
    ReadOuts,
    TraceConfig,
    agreement,
    check_ablations,
    direct_effects,
    measured_effects,
    path_effects,
    trace_terms,
)
from saelab.circuits.targets import read_out
from saelab.errors import ConfigError, ShapeError
from tests.circuits.circuit_cases import MAKERS, PROMPT, WIDTH, model_of, transcoder, transcoders
from tests.circuits.test_planted_network import CONFIG, oracles, planted
from tests.circuits.test_planted_network import PROMPT as PLANTED_PROMPT


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("hold_patterns", [True, False])
def test_where_nothing_lies_between_measured_and_predicted_agree(
    name: str, hold_patterns: bool
) -> None:
    # From the last MLP to the residual stream after it there is no norm and no attention.
    replacement = LocalReplacement(
        model_of(name), [transcoder(2)], PROMPT, reads=["blocks.2.hook_resid_post"]
    )
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4, WIDTH, generator=generator).double()
    at = torch.full((4,), len(PROMPT) - 1)
    readouts = [ReadOuts("blocks.2.hook_resid_post", at, directions, torch.zeros(4).double())]
    place = int((replacement.latents.position == len(PROMPT) - 1).nonzero()[0])
    change = {place: float(replacement.latents.value[place]) + 2.0}
    direct = direct_effects(replacement, change, readouts)
    measured = measured_effects(replacement, change, readouts, hold_patterns=hold_patterns)
    assert float(direct.abs().min()) > 0.01
    assert torch.allclose(direct, measured, atol=1e-9)


def test_holding_patterns_matters_where_a_change_moves_attention() -> None:
    replacement = LocalReplacement(model_of("llama"), transcoders(), PROMPT)
    readouts = replacement.readouts(torch.arange(len(replacement.latents)))[-1:]
    place = int((replacement.latents.site == 0).nonzero()[0])
    change = {place: float(replacement.latents.value[place]) * 3 + 5}
    held = measured_effects(replacement, change, readouts, hold_patterns=True)
    free = measured_effects(replacement, change, readouts)
    assert not torch.allclose(held, free, atol=1e-3)


def test_a_change_to_the_present_value_changes_nothing() -> None:
    replacement = LocalReplacement(model_of("gpt2"), transcoders(), PROMPT)
    readouts = replacement.readouts(torch.arange(5))
    same = {3: float(replacement.latents.value[3])}
    for found in (
        direct_effects(replacement, same, readouts),
        measured_effects(replacement, same, readouts),
        measured_effects(replacement, same, readouts, hold_patterns=True),
    ):
        assert float(found.abs().max()) < 1e-5


def test_paths_through_latents_predict_the_planted_network() -> None:
    # Its norms hardly move and no feature changes sign: paths are right to first order.
    model, _ = planted()
    traced = trace_terms(model, oracles(), PLANTED_PROMPT, CONFIG, targets=[1, 5, 8])
    replacement, found = traced.replacement, traced.attribution
    paths = path_effects(traced)
    readouts = [read_out(replacement.map.head, traced.targets, len(PLANTED_PROMPT) - 1)]
    latents = replacement.latents
    wanted = [
        n for n in range(len(latents)) if int(latents.position[n]) == 3 and int(latents.site[n]) < 2
    ]
    direct, through, measured = [], [], []
    for n in wanted:
        assert int(found.traced[n]) == n
        change = {n: float(latents.value[n]) + 1e-4}
        measured.append(measured_effects(replacement, change, readouts) / 1e-4)
        direct.append(direct_effects(replacement, change, readouts) / 1e-4)
        through.append(paths[n])
    plain = agreement(torch.stack(direct), torch.stack(measured)).cosine
    better = agreement(torch.stack(through), torch.stack(measured)).cosine
    assert better > plain
    assert better > 0.99


def test_ablations_are_compared_with_what_the_graph_says() -> None:
    model, _ = planted()
    traced = trace_terms(model, oracles(), PLANTED_PROMPT, CONFIG)
    check = check_ablations(traced, n_latents=6)
    assert check.direct.shape == check.free.shape == (6, len(traced.targets))
    # This network's attention writes nothing, so holding its patterns is no different.
    assert torch.allclose(check.held, check.free, atol=1e-6)
    summary = check.summary()
    assert set(summary) == {
        f"{one} against {other}" for one in ("direct", "paths") for other in ("held", "free")
    }
    assert summary["paths against held"].cosine > 0.95
    edges = traced.attribution.contributions.latents[: len(traced.targets), check.latents]
    assert torch.equal(check.direct, -edges.T)


def test_bad_changes_are_refused() -> None:
    replacement = LocalReplacement(model_of("gpt2"), transcoders(), PROMPT)
    with pytest.raises(ConfigError, match="active latents"):
        direct_effects(replacement, {10_000: 0.0}, [])
    with pytest.raises(ConfigError, match="at least one"):
        measured_effects(replacement, {}, [])
    with pytest.raises(ConfigError, match="Raise max_latents"):
        check_ablations(
            trace_terms(model_of("gpt2"), transcoders(), PROMPT, TraceConfig(max_latents=0))
        )
    with pytest.raises(ShapeError, match="cannot be compared"):
        agreement(torch.ones(2), torch.ones(3))
