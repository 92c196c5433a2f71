"""A network whose features are known: the graph must be the planted weights times activations.

A GPT-2 whose attention writes nothing and whose MLPs are ReLU features reading features of the
layer before:

    z_j = relu(s w_j . (directions of layer l - 1) + b_j)     s: 1 / deviation at the norm
    MLP writes z_j d_j, with orthonormal directions d_j of mean zero
"""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from saelab.activation_functions import ReLU
from saelab.circuits import LocalReplacement, LogitTarget, TraceConfig, trace
from saelab.models import LanguageModel, load_model
from saelab.sae import SAE

N_LAYERS, N_FEATURES, D_MODEL, D_VOCAB = 3, 6, 32, 11
PROMPT = torch.tensor([4, 9, 2, 7])


@cache
def planted() -> tuple[LanguageModel, dict[tuple[int, int, int], float]]:
    """The model, and its weights by (layer, from feature, to feature); layer 0 reads tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=D_VOCAB, n_embd=D_MODEL, n_layer=N_LAYERS, n_head=2, n_positions=16,
        n_inner=N_FEATURES, activation_function="relu", tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    network: Any = GPT2LMHeadModel(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    directions, constant = _directions(
        generator
    )  # [layer + 1, feature, d_model]; row 0 is the embedding's
    weights: dict[tuple[int, int, int], float] = {}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        on = (torch.rand(D_VOCAB, N_FEATURES, generator=generator) < 0.5).double() * 2
        # A large constant that nothing reads: the norms' scales hardly depend on the features.
        network.transformer.wte.weight.copy_(on @ directions[0] + 300 * constant)
        for layer, block in enumerate(network.transformer.h):
            for norm in (block.ln_1, block.ln_2):
                norm.weight.fill_(1.0)
            reads = torch.zeros(N_FEATURES, N_FEATURES).double()
            for to in range(N_FEATURES):
                for source in torch.randperm(N_FEATURES, generator=generator)[:2].tolist():
                    strength = 60 * (1 + float(torch.rand((), generator=generator)))
                    weights[layer, source, to] = strength
                    reads[source, to] = strength
            block.mlp.c_fc.weight.copy_(directions[layer].T @ reads)
            block.mlp.c_fc.bias.fill_(-0.1)
            block.mlp.c_proj.weight.copy_(directions[layer + 1])
            block.mlp.c_proj.bias.fill_(0.0)
        network.transformer.ln_f.weight.fill_(1.0)
        network.lm_head.weight.copy_(torch.randn(D_VOCAB, D_MODEL, generator=generator))
    return load_model(network, name="planted", device="cpu"), weights


def _directions(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Orthonormal, and orthogonal to the vector of ones that a LayerNorm removes; and one more."""
    raw = torch.randn(D_MODEL, D_MODEL, generator=generator).double()
    raw[:, 0] = 1.0
    basis = torch.linalg.qr(raw).Q[:, 1:].T
    n = (N_LAYERS + 1) * N_FEATURES
    return basis[:n].reshape(N_LAYERS + 1, N_FEATURES, D_MODEL), basis[n]


def oracle(layer: int, without: int | None = None) -> SAE:
    """The dictionary that holds exactly the layer's features; or all but one."""
    model, _ = planted()
    mlp: Any = getattr(model, "module").transformer.h[layer].mlp  # noqa: B009 - of TorchModel
    sae = SAE(
        D_MODEL,
        N_FEATURES,
        ReLU(),
        hook=f"blocks.{layer}.mlp.hook_in",
        hook_out=f"blocks.{layer}.hook_mlp_out",
        dtype=torch.float64,
    )
    with torch.no_grad():
        sae.W_enc.copy_(mlp.c_fc.weight)
        sae.b_enc.copy_(mlp.c_fc.bias)
        sae.W_dec.copy_(mlp.c_proj.weight)
        if without is not None:
            sae.W_enc[:, without] = 0.0
            sae.b_enc[without] = -1.0
    return sae


def oracles() -> list[SAE]:
    return [oracle(layer) for layer in range(N_LAYERS)]


CONFIG = TraceConfig(first_position_as_error=False, max_logits=3)


def test_an_oracle_dictionary_leaves_no_error() -> None:
    model, _ = planted()
    replacement = LocalReplacement(model, oracles(), PROMPT, first_position_as_error=False)
    for error in replacement.errors.values():
        assert float(error.abs().max()) < 1e-13
    assert trace(model, oracles(), PROMPT, CONFIG).replacement_score() == pytest.approx(1.0)


def test_edges_between_latents_are_the_planted_weights_times_activations() -> None:
    model, weights = planted()
    graph = trace(model, oracles(), PROMPT, CONFIG)
    stream = model.activations(PROMPT[None], [f"blocks.{n}.hook_resid_mid" for n in range(3)])
    found = 0
    for target in (n for n in graph.nodes if n.kind == "latent"):
        layer, position = target.layer or 0, target.position or 0
        x = stream[f"blocks.{layer}.hook_resid_mid"][0, position]
        s = 1 / float((x.var(correction=0) + 1e-5).sqrt())
        edges = {e.source.id: e for e in graph.into(target)}
        for (at, source, to), weight in weights.items():
            if (at, to) == (layer, target.index) and layer > 0:
                edge = edges.pop(f"{layer - 1}_{source}_{position}", None)
                active = 0.0 if edge is None else edge.source.value or 0.0
                if edge is not None:
                    assert edge.weight == pytest.approx(s * weight * active, abs=1e-10)
                    found += 1
        # Nothing else reaches it but its own bias and, in layer 0, the token.
        for edge in edges.values():
            if edge.source.kind == "bias":
                assert edge.weight == pytest.approx(-0.1)
            elif edge.source.kind != "token" or layer > 0:
                assert abs(edge.weight) < 1e-10
    assert found > 20


def test_a_latent_left_out_of_the_dictionary_becomes_error() -> None:
    model, _ = planted()
    whole = trace(model, oracles(), PROMPT, CONFIG)
    gone = max(
        (n for n in whole.nodes if n.kind == "latent" and n.layer == 1 and n.position == 3),
        key=lambda n: sum(abs(e.weight) for e in whole.out_of(n)),
    )
    part = trace(model, [oracle(0), oracle(1, without=gone.index), oracle(2)], PROMPT, CONFIG)
    assert gone.id not in {n.id for n in part.nodes}
    before = {e.target.id: e.weight for e in whole.out_of(gone)}
    after = {e.target.id: e.weight for e in part.out_of("1_error_mlp_out_3")}
    large = {name: weight for name, weight in before.items() if abs(weight) > 1e-9}
    assert large
    for name, weight in large.items():
        assert after[name] == pytest.approx(weight, abs=1e-12)
    assert part.replacement_score() < whole.replacement_score()


def test_noise_in_the_dictionary_makes_the_replacement_score_fall() -> None:
    model, _ = planted()
    scores = []
    for noise in (0.0, 0.1, 0.4):
        saes = oracles()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for sae in saes:
                sae.W_dec.add_(noise * torch.randn(sae.W_dec.shape, generator=generator))
        scores.append(trace(model, saes, PROMPT, CONFIG).replacement_score())
    assert scores[0] > scores[1] > scores[2]


def test_a_target_along_one_feature_has_that_feature_for_its_only_source() -> None:
    model, _ = planted()
    replacement = LocalReplacement(model, oracles(), PROMPT, first_position_as_error=False)
    last = [n for n in range(len(replacement.latents)) if int(replacement.latents.site[n]) == 2]
    chosen = next(n for n in last if int(replacement.latents.position[n]) == 3)
    index = int(replacement.latents.index[chosen])
    direction = oracle(2).W_dec[index].detach()
    graph = trace(
        model,
        oracles(),
        PROMPT,
        CONFIG,
        targets=[LogitTarget(label="planted", direction=direction, weight=1.0)],
    )
    large = [e.source.id for e in graph.into("target_0") if abs(e.weight) > 1e-12]
    assert large == [f"2_{index}_3"]
