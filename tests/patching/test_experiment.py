"""Taking components away: end points, batches, what equals what, and which models are refused."""

import pytest
import torch
from torch import Tensor

from saelab.circuits.feature_effects import EffectsConfig
from saelab.errors import ConfigError, ModelError
from saelab.models import load_model
from saelab.patching import Edge, EdgeAblation, Experiment, NodeAblation, edge_attribution
from saelab.patching.experiment import StandIn
from saelab.patching.removal import Removal
from tests import tiny_models
from tests.circuits.circuit_cases import model_of
from tests.patching.patching_cases import (
    NAMES,
    experiment_of,
    linear_experiment,
    random_pairs,
)

ALL = pytest.mark.parametrize("name", NAMES)
EAP = EffectsConfig(method="attribution")
# GPT-NeoX alone computes its norms in the type it was given.
TOLERANCE = {"neox": 1e-9, "gpt2": 1e-5, "llama": 1e-5}


@ALL
def test_without_any_edge_the_model_runs_the_patch_prompt(name: str) -> None:
    one = experiment_of(name)
    gone = one.logits_without(edges=one.graph.allowed())
    patched = one.model.logits(one.pairs.patch)[:, -1]
    assert torch.allclose(gone, patched, atol=TOLERANCE[name] * float(patched.abs().max()))
    assert one.patched == pytest.approx(one.without(edges=one.graph.allowed()), abs=1e-4)


@ALL
@pytest.mark.parametrize("stand_in", ["patch", "mean", "zero"])
def test_with_every_edge_the_model_runs_as_it_is(name: str, stand_in: StandIn) -> None:
    one = experiment_of(name, stand_in)
    none = torch.zeros_like(one.graph.allowed())
    assert torch.equal(one.logits_without(edges=none), one.clean_logits)
    assert EdgeAblation(one).with_only(one.graph.edges()) == one.clean
    assert NodeAblation(one).with_only(one.graph.nodes) == one.clean


@ALL
@pytest.mark.parametrize("stand_in", ["patch", "mean", "zero"])
def test_a_component_is_gone_when_all_its_edges_are(name: str, stand_in: StandIn) -> None:
    one = experiment_of(name, stand_in)
    for node in ("embed", "a0.h2", "m1", "a2.h0"):
        nodes = one.graph.node_mask([node])
        edges = one.graph.allowed() & nodes[None]
        first, second = one.logits_without(nodes=nodes), one.logits_without(edges=edges)
        assert not torch.allclose(first, one.clean_logits, atol=1e-3)
        assert torch.allclose(first, second, atol=TOLERANCE[name] * float(first.abs().max()))


@ALL
def test_a_head_set_to_zero_writes_nothing(name: str) -> None:
    one = experiment_of(name, "zero")
    d_head, z = one.parts[1].W_O.shape[1], "blocks.1.attn.hook_z"

    def without_head(x: Tensor) -> Tensor:
        kept = x.clone()
        kept[..., 2 * d_head : 3 * d_head] = 0
        return kept

    with one.model.editing({z: without_head}):
        expected = one.model.logits(one.pairs.clean)[:, -1]
    found = one.logits_without(nodes=one.graph.node_mask(["a1.h2"]))
    assert torch.allclose(found, expected, atol=1e-9)


def test_a_mean_stands_in_position_by_position() -> None:
    one = experiment_of("llama", "mean")
    out = "blocks.1.hook_mlp_out"
    mean = one.model.activations(one.pairs.patch, [out])[out].mean(0)
    with one.model.editing({out: lambda x: mean.expand_as(x)}):
        expected = one.model.logits(one.pairs.clean)[:, -1]
    found = one.logits_without(nodes=one.graph.node_mask(["m1"]))
    assert torch.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "neox"])
def test_one_edge_changes_what_one_receiver_reads(name: str) -> None:
    # By hand: the MLP of block 1 reads a stream in which head a0.h1 wrote what the patch made it.
    one = experiment_of(name)
    batch = one.pairs
    clean, patch = one.writes(batch.clean)[0], one.writes(batch.patch)[0]
    sender = one.graph.senders.index("a0.h1")
    parts = one.parts[1]
    stream = one.model.activations(batch.clean, [parts.mlp_stream])[parts.mlp_stream]
    read = parts.mlp_norm.forward(stream + patch[sender] - clean[sender])
    with one.model.editing({parts.mlp_in: lambda _: read}):
        expected = one.model.logits(batch.clean)[:, -1]
    found = one.logits_without(edges=one.graph.mask([Edge("a0.h1", "m1")]))
    assert torch.allclose(found, expected, atol=TOLERANCE[name] * float(expected.abs().max()))


def test_a_changed_query_leaves_the_other_heads_alone() -> None:
    one = experiment_of("llama")
    seen: dict[str, list[bool]] = {}
    for edge in (Edge("m0", "a1.q1"), Edge("m0", "a1.k0")):
        z = "blocks.1.attn.hook_z"
        removal = one.graph.mask([edge])
        (batch, stand_in), *_ = one._batches
        edits = Removal(one.parts, one.graph, stand_in, edges=removal).edits()
        before = one.model.activations(batch.clean, [z])[z]
        with one.model.editing(edits):
            after = one.model.activations(batch.clean, [z])[z]
        moved = (after - before).unflatten(2, (4, -1)).abs().amax((0, 1, 3))
        seen[edge.receiver] = (moved > 1e-5).tolist()
    assert seen == {"a1.q1": [False, True, False, False], "a1.k0": [True, True, False, False]}


def test_rows_can_be_cut_into_batches_of_any_size() -> None:
    model, pairs = model_of("llama"), random_pairs(5)
    for stand_in in ("patch", "mean"):
        small, large = (
            Experiment(model, pairs, stand_in, rows_per_batch=n)  # type: ignore[arg-type]
            for n in (2, 5)
        )
        some = small.graph.mask(small.graph.edges()[::3])
        assert torch.allclose(
            small.logits_without(edges=some), large.logits_without(edges=some), atol=1e-9
        )
        a, b = edge_attribution(small, EAP).scores, edge_attribution(large, EAP).scores
        assert torch.allclose(a, b, atol=1e-9)


def test_single_precision_gives_the_same() -> None:
    double, single = experiment_of("llama"), experiment_of("llama", dtype=torch.float32)
    some = double.graph.mask(double.graph.edges()[::3])
    a, b = double.logits_without(edges=some), single.logits_without(edges=some)
    assert torch.allclose(a.float(), b, atol=1e-4 * float(a.abs().max()))
    scores = [edge_attribution(one, EAP).scores.double() for one in (double, single)]
    assert torch.allclose(scores[0], scores[1], atol=1e-4 * float(scores[0].abs().max()))


def test_prompts_that_were_run_are_counted() -> None:
    one = Experiment(model_of("llama"), random_pairs(3))
    started = one.clock()
    edge_attribution(one)
    spent = one.clock() - started
    # Clean and patch writes once, and five points of one forward and one backward each.
    assert (spent.forward, spent.backward) == (3 + 3 + 5 * 3, 5 * 3)
    assert spent.seconds > 0


def test_a_model_whose_heads_do_not_add_up_is_refused() -> None:
    with pytest.raises(ModelError, match="do not add up"):
        Experiment(model_of("gemma2"), random_pairs())


def test_a_model_without_known_blocks_is_refused() -> None:
    plain = load_model(tiny_models.TinyPlainModel(), name="plain", device="cpu")
    with pytest.raises(ModelError, match="no blocks of a layout"):
        Experiment(plain, random_pairs())
    with pytest.raises(ConfigError, match="stand-in"):
        Experiment(model_of("llama"), random_pairs(), rows_per_batch=0)


def test_a_model_without_mlps_has_heads_only() -> None:
    assert set(linear_experiment().graph.nodes) == {f"a{n}.h{h}" for n in range(3) for h in (0, 1)}


@ALL
def test_blocks_before_the_first_change_need_not_run(name: str) -> None:
    one = experiment_of(name)
    late = [Edge("a0.h1", "a2.q0"), Edge("embed", "m2"), Edge("m1", "logits")]
    calls: list[int] = []
    one.logits_without(edges=one.graph.mask(late))  # whatever is kept is kept from now on
    hook = one._blocks[1].register_forward_hook(lambda *_: calls.append(1))
    module = one.model.module.get_submodule(f"{one.parts[1].block}.mlp")
    inner = module.register_forward_hook(lambda *_: calls.append(2))
    for edges, nodes in ((one.graph.mask(late), None), (None, one.graph.node_mask(["a2.h1"]))):
        calls.clear()
        skipped = one.logits_without(edges=edges, nodes=nodes)
        assert calls == [1]  # the block was passed, and its MLP never ran
        one._skippable = False
        try:
            assert torch.allclose(one.logits_without(edges=edges, nodes=nodes), skipped, atol=1e-9)
        finally:
            one._skippable = True
    hook.remove()
    inner.remove()
    assert torch.equal(one.model.logits(one.pairs.clean)[:, -1], one.clean_logits)
