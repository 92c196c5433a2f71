"""`trace`: from a prompt to a graph whose sums close, and refusals that say what to do."""

from dataclasses import fields
from typing import Any

import pytest
import torch

from saelab.activation_functions import MatchingPursuit, TopK
from saelab.circuits import LogitTarget, TraceConfig, trace, trace_terms
from saelab.errors import ConfigError, DataError, HookPointError, ModelError, ShapeError
from saelab.graphs import AttributionGraph
from saelab.sae import SAE
from tests.circuits.circuit_cases import (
    MAKERS,
    N_LATENTS,
    PROMPT,
    WIDTH,
    cross_layer,
    model_of,
    transcoder,
    transcoders,
)

ALL = pytest.mark.parametrize("name", MAKERS)


@ALL
def test_a_graph_closes_and_remembers_the_prompt(name: str) -> None:
    model = model_of(name, torch.float32)
    graph = trace(model, transcoders(torch.float32), "an owl")
    assert graph.closes(1e-4)
    assert graph.tokens == ("<|endoftext|>", *"an owl")
    assert graph.token_ids == (0, *model.encode("an owl"))
    kinds = {node.kind for node in graph.nodes}
    learned = {"position"} if name == "gpt2" else set()
    assert kinds == {"latent", "error", "token", "bias", "logit"} | learned
    assert graph.metadata["active_latents"] == int(graph.of_kind("latent").sum())
    assert graph.metadata["model"]["name"] == f"tiny-{name}"


@ALL
def test_targets_are_the_fewest_likeliest_tokens(name: str) -> None:
    model = model_of(name)
    probabilities = model.logits(PROMPT[None])[0, -1].softmax(-1)
    for share in (0.3, 0.9):
        config = TraceConfig(logit_share=share, max_logits=250, max_latents=0)
        logits = [n for n in trace(model, transcoders(), PROMPT, config).nodes if n.kind == "logit"]
        held = torch.tensor([n.probability for n in logits]).double()
        assert float(held.sum()) >= share > float(held.sum() - held.min())
        for node in logits:
            assert node.probability == pytest.approx(
                float(probabilities[node.index or 0]), abs=1e-5
            )
    few = TraceConfig(logit_share=1.0, max_logits=2, max_latents=0)
    assert int(trace(model, transcoders(), PROMPT, few).of_kind("logit").sum()) == 2


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_a_logit_node_is_the_logit_above_the_mean_logit(name: str) -> None:
    # Gemma 2 caps its logits after the unembedding, which the targets leave out.
    model = model_of(name)
    logits = model.logits(PROMPT[None])[0, -1]
    graph = trace(model, transcoders(), PROMPT, TraceConfig(max_logits=3, max_latents=0))
    for node in graph.nodes:
        if node.kind == "logit":
            expected = float(logits[node.index or 0] - logits.mean())
            assert node.value == pytest.approx(expected, abs=1e-4)


def test_targets_may_be_named() -> None:
    model = model_of("llama")
    direction = torch.ones(WIDTH).double()
    graph = trace(
        model,
        transcoders(),
        PROMPT,
        targets=["a", 5, ("a", 5), LogitTarget(label="all", direction=direction, weight=2.0)],
    )
    first, second, both, own = graph.nodes[-4:]
    assert [n.kind for n in (first, second, both, own)] == ["logit", "logit", "target", "target"]
    assert both.value == pytest.approx((first.value or 0) - (second.value or 0))
    assert graph.weights[-4:].tolist() == [first.probability, second.probability, 1.0, 2.0]
    assert own.label == "all"
    assert graph.closes(1e-9)


def test_a_budget_keeps_the_most_influential_latents_and_the_sums() -> None:
    model = model_of("gpt2")
    whole = trace(model, cross_layer(), PROMPT)
    config = TraceConfig(max_latents=12, batch_size=3, rerank_every=1)
    part = trace(model, cross_layer(), PROMPT, config)
    assert int(part.of_kind("latent").sum()) == part.metadata["traced_latents"] == 12
    assert part.closes(1e-9)
    assert part.metadata["active_latents"] == whole.metadata["active_latents"] > 30
    by_name = dict(zip((n.id for n in whole.nodes), whole.influence().tolist(), strict=True))
    kept = [n.id for n in part.nodes if n.kind == "latent"]
    best = sorted((n.id for n in whole.nodes if n.kind == "latent"), key=lambda n: -by_name[n])
    assert len(set(kept) & set(best[:12])) >= 9
    # An edge is what it is, whatever else is traced.
    for edge in part.into(part.nodes[-1]):
        if edge.source.kind == "latent":
            again = {e.source.id: e.weight for e in whole.into(whole.nodes[-1])}
            assert edge.weight == pytest.approx(again[edge.source.id], abs=1e-10)


def test_batches_of_any_size_give_the_same_graph() -> None:
    model = model_of("neox")
    first = trace(model, transcoders(), PROMPT, TraceConfig(batch_size=1))
    second = trace(model, transcoders(), PROMPT, TraceConfig(batch_size=64))
    assert [n.id for n in first.nodes] == [n.id for n in second.nodes]
    assert torch.allclose(first.adjacency(), second.adjacency(), atol=1e-11)


def test_memory_bounds_how_much_is_taken_apart_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import saelab.circuits.attribution as attribution

    model, counts = model_of("llama"), []
    decompose = attribution.LocalReplacement.decompose

    def counted(self: Any, readouts: Any) -> Any:
        counts.append(sum(len(some) for some in readouts))
        return decompose(self, readouts)

    monkeypatch.setattr(attribution.LocalReplacement, "decompose", counted)
    a_row = 4 * len(PROMPT) * WIDTH
    monkeypatch.setattr(attribution, "SLOPES_AT_ONCE", 5 * a_row)
    trace(model, transcoders(), PROMPT, TraceConfig(max_logits=2))
    assert max(counts[1:]) == 5


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int, str]] = []
    trace(
        model_of("llama"),
        transcoders(),
        PROMPT,
        TraceConfig(max_latents=10, batch_size=4),
        progress=lambda *now: seen.append(now),
    )
    assert [done for done, _, _ in seen] == [4, 8, 10]
    assert seen[-1][1:] == (10, "latents")


def test_the_first_position_is_all_error_unless_it_is_asked_for() -> None:
    plain = trace(model_of("llama"), transcoders(), PROMPT)
    assert min(n.position or 0 for n in plain.nodes if n.kind == "latent") == 1
    config = TraceConfig(first_position_as_error=False)
    asked = trace(model_of("llama"), transcoders(), PROMPT, config)
    assert min(n.position or 0 for n in asked.nodes if n.kind == "latent") == 0
    assert asked.closes(1e-9)


def test_a_prompt_of_ids_is_taken_as_it_is_and_text_gets_the_first_token() -> None:
    model = model_of("llama")
    ids = model.encode("an owl")
    assert trace(model, transcoders(), ids, TraceConfig(max_latents=0)).token_ids == tuple(ids)
    bare = TraceConfig(max_latents=0, prepend_bos=False)
    assert trace(model, transcoders(), "an owl", bare).token_ids == tuple(ids)


def test_a_prompt_of_one_token_can_be_traced() -> None:
    graph = trace(model_of("gpt2"), transcoders(), [7])
    assert graph.closes(1e-9)
    assert not graph.of_kind("latent").any()


def test_two_dictionaries_of_one_block_have_different_nodes() -> None:
    stream = SAE(WIDTH, N_LATENTS, TopK(3), hook="blocks.1.hook_resid_post", dtype=torch.float64)
    graph = trace(model_of("llama"), {"a": transcoder(1), "b": stream}, PROMPT)
    hooks = {n.hook for n in graph.nodes if n.kind == "latent"}
    assert hooks == {"blocks.1.mlp.hook_in", "blocks.1.hook_resid_post"}
    assert graph.closes(1e-9)


def test_tracing_twice_gives_the_same_graph_to_the_last_bit() -> None:
    first, second = (trace(model_of("gpt2"), transcoders(), PROMPT) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert first.nodes == second.nodes


def test_a_graph_can_be_pruned_and_still_closes() -> None:
    graph: AttributionGraph = trace(model_of("neox"), transcoders(), PROMPT)
    pruned = graph.prune(0.7, 0.9)
    assert len(pruned) < len(graph)
    assert pruned.closes(1e-9)


@pytest.mark.parametrize(
    ("dictionaries", "error", "words"),
    [
        ([], ConfigError, "No dictionary was given"),
        ([SAE(WIDTH, 8)], ConfigError, "does not say which hook points"),
        ([transcoder(0), transcoder(0)], ConfigError, "Two dictionaries write to"),
        ([SAE(WIDTH, 8, hook="blocks.9.hook_resid_post")], HookPointError, "has 3 layers"),
        ([SAE(8, 8, hook="blocks.0.hook_resid_post")], ShapeError, "width 8"),
        ([SAE(WIDTH, 8, hook="blocks.0.hook_mlp_out")], ConfigError, "constant or not affine"),
        ([SAE(WIDTH, 8, hook="blocks.0.mlp.hook_in")], ConfigError, "nothing reads it"),
        (
            [SAE(WIDTH, 8, hook="blocks.0.mlp.hook_in", hook_out="blocks.0.hook_resid_post")],
            ConfigError,
            "must write what an MLP writes",
        ),
        (
            [SAE(WIDTH, 8, MatchingPursuit(2), hook="blocks.0.hook_resid_post", tied=True)],
            ConfigError,
            "no encoder direction",
        ),
        (
            [
                SAE(
                    WIDTH,
                    8,
                    hook="blocks.0.hook_resid_post",
                    metadata={"model": {"name": "other", "weights": "sha256:0"}},
                )
            ],
            ModelError,
            "was trained on other",
        ),
    ],
)
def test_dictionaries_that_cannot_be_traced_are_refused(
    dictionaries: list[SAE], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        trace(model_of("llama"), dictionaries, PROMPT)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [("", "prompt is empty"), ([], "has no token"), ("a" * 300, "has 301 tokens")],
)
def test_a_prompt_that_cannot_be_traced_is_refused(prompt: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        trace(model_of("llama"), transcoders(), prompt)


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        ([], ConfigError, "No target was named"),
        (["two words"], ConfigError, "9 tokens"),
        ([999], ConfigError, "outside the vocabulary"),
        ([LogitTarget(label="x", direction=torch.ones(3), weight=1.0)], ShapeError, "d_model"),
    ],
)
def test_targets_that_do_not_exist_are_refused(
    targets: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        trace(model_of("llama"), transcoders(), PROMPT, targets=targets)


@pytest.mark.parametrize(
    "setting", [{"max_logits": 0}, {"batch_size": 0}, {"logit_share": 0.0}, {"max_latents": -1}]
)
def test_impossible_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TraceConfig(**setting)


def test_the_graph_records_every_setting() -> None:
    graph = trace_terms(model_of("gpt2"), transcoders(), PROMPT, TraceConfig(max_latents=3)).graph()
    assert set(graph.metadata["trace"]) == {field.name for field in fields(TraceConfig)}
    assert graph.metadata["trace"]["max_latents"] == 3
