"""Sparse feature circuits: estimates against exact effects, sums over edges, end points."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saelab.activation_functions import AbsTopK, ReLU
from saelab.circuits import (
    METRIC,
    EffectsConfig,
    FeatureNode,
    faithfulness_curve,
    feature_edges,
    feature_effects,
    feature_sites,
    find_feature_circuit,
    metric_with_only,
)
from saelab.circuits.feature_effects import rowwise
from saelab.circuits.feature_sites import FeatureSite, states
from saelab.errors import ConfigError, ShapeError
from saelab.models import LanguageModel, load_model
from saelab.sae import SAE
from tests import tiny_models
from tests.circuits.circuit_cases import WIDTH, autoencoder, model_of, transcoder

CLEAN = tiny_models.random_tokens(2, 5, 30, seed=1)
PATCH = tiny_models.random_tokens(2, 5, 30, seed=2)
FIRST_ORDER = EffectsConfig(method="attribution")
ATTRIBUTION_AND_INTEGRATED = [
    FIRST_ORDER,
    EffectsConfig(steps=1, rule="left"),
    EffectsConfig(steps=3, rule="right"),
    EffectsConfig(steps=2),
]


class Linear(nn.Module):
    """Embedding, two residual linear blocks that also look one token back, unembedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(30, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 30)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x + x.roll(1, dims=1) * (torch.arange(x.shape[1]) > 0)[:, None])
        return self.head(x)


@cache
def linear_model() -> LanguageModel:
    return load_model(Linear().double(), name="linear", device="cpu")


def linear_sites() -> tuple[FeatureSite, ...]:
    saes = [
        SAE(8, 12, AbsTopK(3), hook=f"blocks.{n}.output", dtype=torch.float64, seed=n)
        for n in range(2)
    ]
    return feature_sites(linear_model(), saes)


def difference(logits: Tensor) -> Tensor:
    return logits[:, -1, 3] - logits[:, -1, 7]


def squared(logits: Tensor) -> Tensor:
    return difference(logits) ** 2


def exact(site: FeatureSite, node: FeatureNode | None, metric: Any) -> float:
    """Mean change of the metric when a node, or the whole site, takes its patch value."""
    model = linear_model()
    (before,), (after,) = states(model, [site], CLEAN), states(model, [site], PATCH)
    moved, missed = after.latents - before.latents, after.error - before.error
    if node is not None:
        kept = torch.zeros(site.sae.d_sae).double()
        kept[[] if node.latent is None else [node.latent]] = 1
        moved, missed = moved * kept, missed * float(node.latent is None)
    delta = moved @ site.decoder(torch.arange(site.sae.d_sae)) + missed
    with torch.no_grad(), model.editing({site.hook: lambda x: x + delta}):
        changed = metric(model.logits(CLEAN))
    return float((changed - metric(model.logits(CLEAN))).mean())


@pytest.mark.parametrize("config", ATTRIBUTION_AND_INTEGRATED, ids=str)
def test_in_a_linear_model_every_estimate_is_the_exact_effect(config: EffectsConfig) -> None:
    effects = feature_effects(linear_model(), linear_sites(), CLEAN, difference, PATCH, config)
    nodes = effects.nodes(1e-6)
    assert len(nodes) > 8
    for site in linear_sites():
        for node, effect in nodes.items():
            if node.hook == site.hook:
                assert effect == pytest.approx(exact(site, node, difference), abs=1e-10)


def test_the_midpoint_rule_is_exact_on_a_quadratic_metric_and_the_others_are_not() -> None:
    site = linear_sites()[0]
    whole = exact(site, None, squared)
    sums = {}
    for rule in ("left", "right", "midpoint"):
        config = EffectsConfig(steps=3, rule=rule)  # type: ignore[arg-type]
        effects = feature_effects(linear_model(), [site], CLEAN, squared, PATCH, config)
        sums[rule] = float(effects.latents[0].sum() + effects.errors[0].sum())
    assert sums["midpoint"] == pytest.approx(whole, abs=1e-9)
    # The two others miss by the same amount on either side.
    assert sums["left"] + sums["right"] == pytest.approx(2 * whole, abs=1e-9)
    assert abs(sums["left"] - whole) > 0.01 * abs(whole)


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_effects_of_a_site_sum_to_what_its_activation_does(name: str) -> None:
    model = model_of(name)
    sites = feature_sites(model, [autoencoder("blocks.1.hook_resid_post"), transcoder(2)])
    slopes: dict[str, Tensor] = {}
    leaf = torch.zeros(2, 5, WIDTH).double().requires_grad_()
    hook = sites[0].hook
    with torch.enable_grad(), model.editing({hook: lambda x: x + leaf}):
        total = difference(model.whole_pass(CLEAN)[0]).sum()
        (slopes[hook],) = torch.autograd.grad(total, [leaf])
    x, other = (model.activations(tokens, [hook])[hook] for tokens in (CLEAN, PATCH))
    paired = feature_effects(model, sites, CLEAN, difference, PATCH, FIRST_ORDER)
    found = float(paired.latents[0].sum() + paired.errors[0].sum())
    assert found == pytest.approx(float((slopes[hook] * (other - x)).sum()) / 2, abs=1e-9)
    alone = feature_effects(model, sites, CLEAN, difference, None, FIRST_ORDER)
    found = float(alone.latents[0].sum() + alone.errors[0].sum())
    expected = -float((slopes[hook] * (x - sites[0].sae.b_dec.detach())).sum()) / 2
    assert found == pytest.approx(expected, abs=1e-9)


def _block_sites(name: str) -> tuple[FeatureSite, ...]:
    hooks = ["blocks.0.hook_resid_post", "blocks.1.hook_attn_out", "blocks.1.hook_resid_post"]
    saes = [autoencoder(hook) for hook in hooks]
    mlp = transcoder(1, skip=True) if name == "llama" else autoencoder("blocks.1.hook_mlp_out")
    return feature_sites(model_of(name), [*saes, mlp])


@pytest.mark.parametrize("name", ["llama", "neox", "gemma2"])
@pytest.mark.parametrize("patch", [PATCH, None], ids=["pairs", "zeros"])
def test_edges_out_of_a_node_sum_to_its_effect(name: str, patch: Tensor | None) -> None:
    # Residual streams are choke points: nothing skips a layer, so the sum needs every site between.
    model, sites = model_of(name), _block_sites(name)
    effects = feature_effects(model, sites, CLEAN, difference, patch, FIRST_ORDER)
    every = [
        FeatureNode(site.hook, None, latent)
        for site in sites
        for latent in (*range(site.sae.d_sae), None)
    ]
    edges = feature_edges(model, sites, every, CLEAN, difference, patch)
    sums = dict.fromkeys((edge.source for edge in edges), 0.0)
    for edge, value in edges.items():
        sums[edge.source] += value
    first = sites[0].hook
    assert sum(source.hook == first for source in sums) > 3
    for node, effect in effects.nodes(0.0).items():
        # All but GPT-NeoX compute their norms in single precision, whatever their type.
        tolerance = 1e-9 if name == "neox" else 1e-5
        assert sums.get(node, 0.0) == pytest.approx(effect, abs=tolerance)
    between = {edge.target.hook for edge in edges if edge.source.hook == first}
    assert between == {site.hook for site in sites[1:]}
    assert {e.source.hook for e in edges if e.target == METRIC} == {"blocks.1.hook_resid_post"}


def test_positions_can_be_nodes_of_their_own() -> None:
    sites = linear_sites()
    single = feature_effects(
        linear_model(), sites, CLEAN, difference, PATCH, FIRST_ORDER, aggregation="none"
    )
    summed = feature_effects(linear_model(), sites, CLEAN, difference, PATCH, FIRST_ORDER)
    assert {node.position for node in single.nodes(1e-9)} == {3, 4}  # block 1 looks one back
    for one, other in zip(single.latents, summed.latents, strict=True):
        assert torch.allclose(one.sum(0), other[0])
    nodes = list(single.nodes(1e-9))
    edges = feature_edges(linear_model(), sites, nodes, CLEAN, difference, PATCH)
    assert all((e.target.position or 4) - (e.source.position or 0) in (0, 1) for e in edges)


def test_rows_can_be_cut_into_batches_of_any_size() -> None:
    one, all_ = (
        feature_effects(
            linear_model(),
            linear_sites(),
            CLEAN,
            squared,
            PATCH,
            EffectsConfig(steps=2, rows_per_batch=n),
        )
        for n in (1, 2)
    )
    assert torch.allclose(one.latents[1], all_.latents[1])
    assert one.metric == pytest.approx(all_.metric)


def test_a_dictionary_of_single_coordinates_has_no_error_effect() -> None:
    sae = SAE(8, 8, AbsTopK(8), hook="blocks.0.output", dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(8))
        sae.W_dec.copy_(torch.eye(8))
    sites = feature_sites(linear_model(), [sae])
    effects = feature_effects(linear_model(), sites, CLEAN, difference, PATCH)
    assert float(effects.errors[0].abs().max()) < 1e-12
    assert float(effects.latents[0].abs().max()) > 0.01


@pytest.mark.parametrize("baseline", [PATCH, None], ids=["means", "zeros"])
def test_everything_is_wholly_faithful_and_nothing_is_not_at_all(baseline: Tensor | None) -> None:
    model, sites = model_of("llama"), _block_sites("llama")
    effects = feature_effects(model, sites, CLEAN, difference, PATCH, FIRST_ORDER)
    points = faithfulness_curve(
        model, effects, CLEAN, difference, baseline, thresholds=[-1.0, 0.05, 1e9]
    )
    assert points[0].faithfulness == pytest.approx(1.0, abs=1e-5)
    assert points[0].completeness == pytest.approx(0.0, abs=1e-5)
    assert points[2].faithfulness == pytest.approx(0.0, abs=1e-5)
    assert points[2].completeness == pytest.approx(1.0, abs=1e-5)
    assert points[0].n_nodes > points[1].n_nodes > points[2].n_nodes == 0


def test_errors_can_all_stay_or_all_go() -> None:
    model, sites = linear_model(), linear_sites()
    every = [FeatureNode(s.hook, None, n) for s in sites for n in range(s.sae.d_sae)]
    whole = float(difference(model.logits(CLEAN)).mean())
    kept = metric_with_only(model, sites, every, CLEAN, difference, errors="all")
    gone = metric_with_only(model, sites, every, CLEAN, difference, errors="none")
    assert kept == pytest.approx(whole)
    assert gone != pytest.approx(whole)


def test_a_planted_latent_is_the_circuit() -> None:
    model = linear_model()
    module: Any = getattr(model, "module")  # noqa: B009 - of TorchModel
    # One latent reads what the metric reads; the others read directions the metric is blind to.
    head = (module.head.weight[3] - module.head.weight[7]).detach()
    raw = torch.cat([head[None], torch.randn(7, 8).double()])
    basis = torch.linalg.qr(raw.T).Q.T * torch.sign(torch.linalg.qr(raw.T).Q.T @ head)[:1, None]
    sae = SAE(8, 16, ReLU(), hook="blocks.1.output", dtype=torch.float64)
    both = torch.cat([basis, -basis])
    with torch.no_grad():
        sae.W_enc.copy_(both.T)
        sae.W_dec.copy_(both)
    # blocks.1.output goes into the last stream and from there to the metric.
    circuit = find_feature_circuit(
        model, [sae], CLEAN, difference, PATCH, node_threshold=1e-9, edge_threshold=1e-9
    )
    assert {node.latent for node in circuit.nodes} <= {0, 8}
    assert circuit.nodes
    assert {edge.target for edge in circuit.edges} == {METRIC}
    for edge, value in circuit.edges.items():
        assert value == pytest.approx(circuit.nodes[edge.source], abs=1e-10)


def test_bad_input_is_refused() -> None:
    model, sites = linear_model(), linear_sites()
    with pytest.raises(ConfigError, match="No dictionary was given"):
        feature_sites(model, [])
    with pytest.raises(ConfigError, match="Two dictionaries write"):
        feature_sites(model, [SAE(8, 8, hook="blocks.0.output")] * 2)
    with pytest.raises(ShapeError, match="same length"):
        feature_effects(model, sites, CLEAN, difference, PATCH[:, :3])
    with pytest.raises(ShapeError, match="one number a row"):
        feature_effects(model, sites, CLEAN, lambda logits: logits.sum())
    with pytest.raises(ShapeError, match="rows of one length"):
        metric_with_only(model, sites, [], CLEAN, difference, PATCH[:, :3])
    with pytest.raises(ConfigError, match="steps=0"):
        EffectsConfig(steps=0)
    effects = feature_effects(model, sites, CLEAN, difference, PATCH, FIRST_ORDER)
    with pytest.raises(ConfigError, match="no circuit can be faithful"):
        faithfulness_curve(model, effects, CLEAN, lambda x: x[:, 0, 0] * 0 + 1.0, thresholds=[0.1])
    assert rowwise(difference, model.logits(CLEAN)).shape == (2,)
