"""Sums close on the default model too, with its 30 layers, rotary positions and shared keys."""

import pytest
import torch

from saelab.activation_functions import TopK
from saelab.circuits import LocalReplacement, TraceConfig, trace
from saelab.circuits.frozen import ReadOuts
from saelab.models import load_model
from saelab.sae import SAE


@pytest.mark.slow
def test_sums_close_on_the_default_model() -> None:
    model = load_model("smollm2", dtype="float32")
    transcoders = [
        SAE(
            576,
            256,
            TopK(8),
            hook=f"blocks.{layer}.mlp.hook_in",
            hook_out=f"blocks.{layer}.hook_mlp_out",
            skip=layer == 15,
            seed=layer,
        )
        for layer in (3, 15, 28)
    ]
    with torch.no_grad():
        for sae in transcoders:
            sae.W_dec.mul_(2.0)
            sae.b_dec.normal_(std=0.1)
            if sae.W_skip is not None:
                sae.W_skip.normal_(std=0.01)
    prompt = "The capital of France is"
    graph = trace(model, transcoders, prompt, TraceConfig(max_latents=60))
    assert graph.closes(1e-4)
    assert {n.layer for n in graph.nodes if n.kind == "latent"} == {3, 15, 28}
    ids = torch.tensor(graph.token_ids)
    replacement = LocalReplacement(model, transcoders, ids)
    query = replacement.map.reads["blocks.20.attn.q"]
    direction = torch.ones(1, query.shape[1])
    last = torch.tensor([len(ids) - 1])
    readouts = [
        *replacement.readouts(torch.arange(len(replacement.latents))),
        ReadOuts("blocks.20.attn.q", last, direction, torch.zeros(1)),
    ]
    parts = replacement.decompose(readouts)
    values = replacement.values(readouts).double()
    assert float((parts.sums() - values).abs().max() / values.abs().max()) < 1e-4
