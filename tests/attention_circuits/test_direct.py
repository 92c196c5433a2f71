"""Direct feature attribution: sums that close, entries that are what heads move."""

import pytest
import torch
from torch import Tensor

from saelab.attention_circuits import DirectAttribution, attention_contrast
from saelab.circuits import LocalReplacement, ReadOuts, attention_score
from saelab.errors import ConfigError
from saelab.sae import SAE
from tests.attention_circuits.planted_induction import (
    VOCAB,
    oracle_of_output,
    planted_induction,
    repeats,
)
from tests.circuits.circuit_cases import (
    PROMPT,
    autoencoder,
    model_of,
    transcoder,
    transcoders,
)

ALL = pytest.mark.parametrize("name", ["llama", "neox"])  # all four: test_invariants
SOME = pytest.mark.parametrize("name", ["gpt2", "gemma2"])


def of_heads(name: str, layer: int = 1) -> SAE:
    width = model_of(name).hook_point(f"blocks.{layer}.attn.hook_z").width
    assert width is not None
    return autoencoder(f"blocks.{layer}.attn.hook_z", width)


def opened(name: str, *dictionaries: SAE, first_position_as_error: bool = True) -> LocalReplacement:
    return LocalReplacement(
        model_of(name),
        dictionaries,
        PROMPT,
        cut_heads=True,
        first_position_as_error=first_position_as_error,
    )


def stream_readouts(replacement: LocalReplacement) -> list[ReadOuts]:
    """The last stream, a query, a key and a value, at several positions."""
    generator = torch.Generator().manual_seed(4)
    found = []
    for hook in (replacement.map.head, "blocks.1.attn.q", "blocks.2.attn.k", "blocks.2.attn.v"):
        x = replacement.map.reads[hook]
        directions = torch.randn(3, x.shape[1], generator=generator).to(x)
        offsets = torch.randn(3, generator=generator).to(x)
        found.append(ReadOuts(hook, torch.tensor([len(PROMPT) - 1, 0, 3]), directions, offsets))
    return found


@ALL
def test_a_latent_of_heads_is_heads_value_biases_and_its_offset(name: str) -> None:
    replacement = opened(name, of_heads(name))
    readouts = replacement.readouts(torch.arange(len(replacement.latents)))
    terms = DirectAttribution(replacement).terms(readouts)
    values = replacement.values(readouts).double()
    own = terms.heads.sum((1, 2, 3)) + terms.value_biases.sum((1, 2)) + terms.offsets
    assert torch.allclose(own, values, atol=1e-10)
    assert torch.allclose(terms.sums(), values, atol=1e-10)
    (sae,) = (layer.sae for layer in replacement.dictionaries.layers)  # type: ignore[attr-defined]
    expected = sae.b_enc - sae.b_dec @ sae.W_enc
    assert torch.allclose(terms.offsets, expected[replacement.latents.index])
    # Only its own layer's heads, and of those all.
    size = terms.heads.abs().sum((0, 3))
    assert (size.sum(1) > 0).tolist() == [False, True, False]
    assert bool((size[1] > 0).all())
    assert bool(terms.value_biases.any()) == (name in ("gpt2", "neox")), "the others have no b_V"


@SOME
def test_an_entry_is_pattern_times_value_times_encoder(name: str) -> None:
    replacement = opened(name, of_heads(name), first_position_as_error=False)
    readouts = replacement.readouts(torch.arange(len(replacement.latents)))
    terms = DirectAttribution(replacement).terms(readouts)
    (one,) = readouts
    pattern = replacement.map.held.patterns[1][0]
    n_heads = len(pattern)
    slots = one.directions.unflatten(1, (n_heads, -1))
    # By hand, one number at a time, from the values that attention of the running model uses.
    values = replacement.map.reads["blocks.1.attn.v"].unflatten(1, (-1, slots.shape[2]))
    bias = _value_bias(replacement, 1)
    shared = n_heads // values.shape[1]
    for row, head, source in ((0, 0, 0), (3, 1, 2), (7, 3, 1)):
        query = int(one.positions[row])
        moved = values[source, head // shared] - bias[head // shared]
        expected = float(pattern[head, query, source] * (slots[row, head] @ moved))
        assert float(terms.heads[row, 1, head, source]) == pytest.approx(expected, abs=1e-12)


def _value_bias(replacement: LocalReplacement, layer: int) -> Tensor:
    """b_V of the weights themselves."""
    block = replacement.map.model.module
    names = dict(block.named_parameters())
    for name, parameter in names.items():
        if f".{layer}." in name and name.endswith("attn.c_attn.bias"):
            return parameter.detach().chunk(3)[2].unflatten(0, (4, -1))
        if f".{layer}." in name and name.endswith("query_key_value.bias"):
            return parameter.detach().unflatten(0, (4, 3, -1))[:, 2]
    width = replacement.map.reads[f"blocks.{layer}.attn.v"].shape[1]
    return torch.zeros(2, width // 2).double()


@ALL
def test_every_read_out_of_the_stream_closes_and_stays_at_its_position(name: str) -> None:
    replacement = opened(name, *transcoders())
    readouts = stream_readouts(replacement)
    latents = replacement.readouts(torch.arange(len(replacement.latents)))
    terms = DirectAttribution(replacement).terms([*readouts, *latents])
    values = replacement.values([*readouts, *latents]).double()
    assert torch.allclose(terms.sums(), values, atol=1e-9 * float(values.abs().max()))
    for part in (terms.heads, terms.latents, terms.errors, terms.tokens):
        assert float(part.abs().amax()) > 0.01
    biased = name in ("gpt2", "neox")
    assert (float(terms.model_biases.abs().amax()) > 0.01) == biased
    # Attention is cut, so latents at other positions reach nothing.
    positions = torch.cat([some.positions for some in (*readouts, *latents)])
    elsewhere = positions[:, None] != replacement.latents.position
    assert not terms.latents[elsewhere].any()
    sources = DirectAttribution(replacement).sources(3)
    assert len(sources) == terms.table().shape[1]
    assert sources[0] == ("head", 0, 0, 0, None)


def test_read_outs_of_heads_and_of_the_stream_keep_their_order() -> None:
    replacement = opened("llama", of_heads("llama"), transcoder(2))
    places = torch.arange(len(replacement.latents))
    inner, outer = replacement.readouts(places)
    direct = DirectAttribution(replacement)
    apart = [direct.terms([some]).table() for some in (inner, outer)]
    for order in ((0, 1), (1, 0)):
        both = direct.terms([(inner, outer)[n] for n in order]).table()
        assert torch.allclose(both, torch.cat([apart[n] for n in order]), atol=1e-12)


def test_a_dictionary_of_heads_stands_in_for_them() -> None:
    replacement = opened("gpt2", of_heads("gpt2"), transcoder(2))
    readouts = replacement.readouts(torch.arange(len(replacement.latents)))[1:]
    terms = DirectAttribution(replacement).terms(readouts)
    assert torch.allclose(terms.sums(), replacement.values(readouts).double(), atol=1e-10)
    assert not terms.heads[:, 1].any()
    assert bool(terms.heads[:, 0].any()) and bool(terms.heads[:, 2].any())
    of_z = replacement.latents.site == 0
    assert bool(terms.latents[:, of_z].any())


@SOME
def test_what_a_head_brought_can_be_taken_apart_where_it_was_read(name: str) -> None:
    replacement = opened(name, transcoder(0), of_heads(name, 2), first_position_as_error=False)
    direct = DirectAttribution(replacement)
    last = int(replacement.latents.site.nonzero()[-1])
    terms = direct.terms(replacement.readouts(torch.tensor([last])))
    query = int(replacement.latents.position[last])
    for head, source in ((0, query), (3, query - 1)):
        slope = terms.head_slopes[0, 2, head]
        readout = direct.head_value(2, head, query, source, slope)
        entry = float(terms.heads[0, 2, head, source])
        assert float(readout.values(replacement.map.reads)[0]) == pytest.approx(entry, abs=1e-12)
        upstream = direct.terms([readout])
        assert float(upstream.sums()[0]) == pytest.approx(entry, abs=1e-10)
        twice = direct.terms([direct.head_value(2, head, query, source, slope, factor=2.0)])
        assert float(twice.sums()[0]) == pytest.approx(2 * entry, abs=1e-10)


def test_the_induction_head_brings_the_token_after_the_earlier_occurrence() -> None:
    positives, _ = repeats(4)
    for row in positives:
        replacement = LocalReplacement(planted_induction(), oracle_of_output(), row, cut_heads=True)
        earlier = int((row[:-1] == row[-1]).nonzero()[0])
        place = next(
            n
            for n in range(len(replacement.latents))
            if int(replacement.latents.position[n]) == len(row) - 1
        )
        assert int(replacement.latents.index[place]) == int(row[earlier + 1])
        terms = DirectAttribution(replacement).terms(replacement.readouts(torch.tensor([place])))
        by_source = terms.by_source()[0]
        assert int(by_source.argmax()) == earlier + 1
        assert float(by_source[earlier + 1]) > 0.95 * float(terms.heads.sum())
        assert int(terms.by_head()[0].flatten().argmax()) == 5  # head 0 of layer 1


@SOME
def test_a_contrast_of_keys_sums_to_the_difference_of_their_scores(name: str) -> None:
    replacement = opened(name, *transcoders())
    scores = [attention_score(replacement, 2, 1, 5, key) for key in range(6)]
    one = attention_contrast(replacement, 2, 1, query=5, key=2, others=[4])
    assert one.value == pytest.approx(scores[2].value - scores[4].value, abs=1e-12)
    assert float(one.pairs().sum()) == pytest.approx(one.value, abs=1e-9)
    every = attention_contrast(replacement, 2, 1, query=5, key=2)
    rest = sum(scores[key].value for key in (0, 1, 3, 4, 5)) / 5
    assert every.value == pytest.approx(scores[2].value - rest, abs=1e-10)
    assert float(every.by_key().sum()) == pytest.approx(every.value, abs=1e-9)


def test_a_contrast_says_why_the_induction_head_looks_back() -> None:
    row = repeats(1)[0][0]
    model = planted_induction()
    replacement = LocalReplacement(model, oracle_of_output(), row, cut_heads=True)
    earlier, last = int((row[:-1] == row[-1]).nonzero()[0]), len(row) - 1
    found = attention_contrast(replacement, 1, 0, query=last, key=earlier + 1)
    ((by_query, by_key, weight),) = found.top_pairs(1)
    # The query's own token, and what layer 0's heads wrote to the key.
    assert (by_query.kind, by_query.position, by_query.number) == ("token", last, int(row[-1]))
    assert (by_key.kind, by_key.hook, by_key.position) == (
        "error", "blocks.0.attn.hook_z", earlier + 1
    )  # fmt: skip
    assert weight == pytest.approx(found.value, rel=0.05)
    assert VOCAB == 12


def test_bad_questions_are_refused() -> None:
    closed = LocalReplacement(model_of("gpt2"), transcoders(), PROMPT)
    with pytest.raises(ConfigError, match="cut_heads=True"):
        DirectAttribution(closed)
    with pytest.raises(ConfigError, match="no key besides 0"):
        attention_contrast(closed, 1, 0, query=0, key=0)
