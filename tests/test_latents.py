import dataclasses

import pytest
import torch

from saelab.activation_functions import ActivationFunction, TopK
from saelab.errors import ConfigError, DataError, ShapeError
from saelab.latent_tails import DoublingHistogram, TailCollector, TokenWindow
from saelab.latents import look, one_in
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from saelab.tokens import Tokens
from tests.tiny_models import tiny_language_model

HOOK = "blocks.1.hook_resid_post"
D = 32


class SignedTopK(ActivationFunction):
    """The k largest pre-activations by size, with their sign."""

    name = "signed_topk"
    signed = True

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, pre_acts):
        indices = pre_acts.abs().topk(self.k, dim=-1).indices
        return torch.zeros_like(pre_acts).scatter(-1, indices, pre_acts.gather(-1, indices))

    def select(self, pre_acts):
        row, latent = self.forward(pre_acts).nonzero(as_tuple=True)
        return row, latent, pre_acts[row, latent]

    def at_pairs(self, pre_acts, indices):  # noqa: ARG002
        return pre_acts

    def to_json(self):
        return {"name": self.name}


def random_sae(activation=None, d_sae=40, seed=0, hook=HOOK):
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(D, d_sae, activation or TopK(4), hook=hook)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(d_sae, D, generator=generator))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


def some_tokens(rows=9, length=14, seed=0):
    """BOS, two documents with a separator between them, one special token inside the second."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(40, 90, (rows, length), generator=generator)
    ids[:, [0, 6]] = 0
    document = torch.arange(rows)[:, None] + torch.zeros(length, dtype=torch.int64)
    document[:, 7:] += 1
    document[:, [0, 6]] = -1
    kept = document >= 0
    kept[:, 9] = False
    names = [f"doc {i}" for i in range(rows + 1)]
    return Tokens(ids, document, kept, names, 0, {"name": "random"})


@pytest.fixture(scope="module")
def model():
    return tiny_language_model()


def dense_latents(sae, model, tokens):
    """[row, pos, latent], zero where not measured: the whole thing at once, as a reference."""
    x = model.activations(tokens.ids.long(), [HOOK])[HOOK]
    dense = sae.activation(sae.pre_activations(x)).detach()
    return dense * tokens.kept[..., None]


def brute_examples(dense, latent, sign, n):
    """(strength, row, position) of the n strongest rows, ties to the earliest, by plain sorting."""
    found = []
    for row in range(dense.shape[0]):
        values = (sign * dense[row, :, latent]).tolist()
        best = max(values)
        if best > 0:
            found.append((best, row, values.index(best)))
    return sorted(found, key=lambda one: (-one[0], one[1], one[2]))[:n]


def listed(tail, place):
    some = zip(tail.strength[place], tail.row[place], tail.position[place], strict=True)
    return [(float(s), int(r), int(p)) for s, r, p in some if s > 0]


@pytest.mark.parametrize("rows_per_batch", [1, 2, 9])
def test_examples_and_counts_are_those_of_the_dense_matrix(model, rows_per_batch):
    sae, tokens = random_sae(SignedTopK(5)), some_tokens()
    found = look(
        sae, model, tokens, n_examples=3, rows_per_batch=rows_per_batch, outlier_factor=None
    )
    dense = dense_latents(sae, model, tokens)
    for side, sign in enumerate((1, -1)):
        tail = found.tails[side]
        assert torch.equal(tail.count, (sign * dense > 0).sum((0, 1)))
        for latent in range(sae.d_sae):
            expected = brute_examples(dense, latent, sign, 3)
            got = listed(tail, latent)
            assert [one[1:] for one in got] == [one[1:] for one in expected], (sign, latent)
            torch.testing.assert_close([one[0] for one in got], [one[0] for one in expected])
    assert found.n_tokens == tokens.n_kept


def test_windows_hold_the_activations_and_tokens_around_the_peak_within_the_document(model):
    sae, tokens = random_sae(SignedTopK(5)), some_tokens()
    found = look(sae, model, tokens, n_examples=2, context=(3, 2), outlier_factor=None)
    dense = dense_latents(sae, model, tokens)
    checked = 0
    for side, tail in enumerate(found.tails):
        for latent in range(sae.d_sae):
            for rank, (_, row, position) in enumerate(listed(tail, latent)):
                for offset in range(-3, 3):
                    place = position + offset
                    inside = (
                        0 <= place < tokens.length
                        and tokens.document[row, place] == tokens.document[row, position]
                    )
                    value = float(tail.window[latent, rank, offset + 3])
                    token = int(found.ids[side][latent, rank, offset + 3])
                    assert token == (int(tokens.ids[row, place]) if inside else -1)
                    expected = float(dense[row, place, latent]) if inside else 0.0
                    assert value == pytest.approx(expected, rel=1e-5)
                    checked += inside
                assert found.documents[side][latent, rank] == tokens.document[row, position]
    assert checked > 300


def test_a_planted_latent_is_found_where_it_was_planted():
    # latent 2 fires at (row 1, pos 3) with 5 and, weaker, earlier in that row; row 0 with 1
    dense = torch.zeros(2, 4, 3)
    dense[1, 3, 2], dense[1, 1, 2], dense[0, 2, 2] = 5.0, 4.0, 1.0
    tail = collected(dense, n=3)
    assert listed(tail, 2) == [(5.0, 1, 3), (1.0, 0, 2)]
    assert tail.row[2].tolist() == [1, 0, -1]
    assert tail.window[2, 0].tolist() == [4, 0, 5, 0, 0]
    assert tail.count.tolist() == [0, 0, 3]


def test_equal_activations_go_to_the_earliest_address():
    dense = torch.ones(5, 3, 1)
    for sizes in ([5], [1, 1, 3], [2, 3]):
        assert listed(collected(dense, n=2, sizes=sizes), 0) == [(1.0, 0, 0), (1.0, 1, 0)]


@pytest.mark.parametrize("seed", range(4))
def test_streaming_merges_equal_one_batch_and_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(40, 6, 25, generator=generator)
    dense = (dense * 4).round() / 4 * (torch.rand(dense.shape, generator=generator) < 0.3)  # ties
    one = collected(dense, n=4)
    many = collected(dense, n=4, sizes=[1, 7, 2, 13, 17])
    for field in dataclasses.fields(one):
        assert torch.equal(getattr(one, field.name), getattr(many, field.name)), field.name
    for latent in range(25):
        assert listed(one, latent) == brute_examples(dense, latent, 1, 4)
    assert torch.equal(one.histogram.sum(1), one.count)


def collected(dense, n, sizes=None, sign=1, latents=None):
    """A tail streamed from a dense [row, pos, latent] array with every token measured."""
    d_sae = dense.shape[2]
    collector = TailCollector(
        torch.arange(d_sae) if latents is None else latents,
        d_sae,
        sign=sign,
        n_examples=n,
        context=(2, 2) if dense.shape[1] > 2 else (0, 0),
    )
    start = 0
    for size in sizes or [dense.shape[0]]:
        part = dense[start : start + size]
        window = TokenWindow(
            torch.ones(part.shape[:2], dtype=torch.bool),
            torch.zeros(part.shape[:2], dtype=torch.int64),
            start,
        )
        collector.update(SparseCodes.from_dense(part.flatten(0, 1)), window)
        start += size
    return collector.result()


def test_latents_can_be_watched_alone(model):
    sae, tokens = random_sae(SignedTopK(5)), some_tokens()
    everything = look(sae, model, tokens, n_examples=3, outlier_factor=None)
    some = look(sae, model, tokens, latents=[17, 3], n_examples=3, outlier_factor=None)
    assert some.latents.tolist() == [3, 17]
    again = everything.only([17, 3])
    for side in range(2):
        for field in dataclasses.fields(some.tails[side]):
            one, other = (getattr(look_.tails[side], field.name) for look_ in (some, again))
            assert torch.equal(one, other), field.name
    assert some.describe(17) == everything.describe(17) == again.describe(17)


def test_permuting_the_latents_permutes_the_look(model):
    sae, other, tokens = random_sae(), random_sae(), some_tokens()
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        other.W_dec.copy_(sae.W_dec[order])
        other.W_enc.copy_(sae.W_enc[:, order])
    one = look(sae, model, tokens, outlier_factor=None)
    two = look(other, model, tokens, outlier_factor=None)
    assert torch.equal(two.counts, one.counts[order])
    assert torch.equal(two.tails[0].row, one.tails[0].row[order])
    assert torch.equal(two.tails[0].position, one.tails[0].position[order])
    assert one.effects is not None
    assert two.effects is not None
    assert torch.equal(two.effects.promoted, one.effects.promoted[order])


def test_flipping_the_sign_of_a_latent_swaps_its_tails_and_its_promoted_tokens(model):
    sae, flipped, tokens = random_sae(SignedTopK(5)), random_sae(SignedTopK(5)), some_tokens()
    with torch.no_grad():
        flipped.W_dec[7] *= -1
        flipped.W_enc[:, 7] *= -1
    one = look(sae, model, tokens, outlier_factor=None)
    two = look(flipped, model, tokens, outlier_factor=None)
    assert torch.equal(one.counts, two.counts)
    assert torch.equal(one.strongest, two.strongest)
    for a, b in ((0, 1), (1, 0)):
        assert torch.equal(one.tails[a].row[7], two.tails[b].row[7])
        assert torch.equal(one.tails[a].window[7], -two.tails[b].window[7])
        assert torch.equal(one.tails[a].histogram[7], two.tails[b].histogram[7])
        assert torch.equal(one.tails[a].row[6], two.tails[a].row[6])
    assert one.effects is not None
    assert two.effects is not None
    assert torch.equal(one.effects.promoted[7], two.effects.suppressed[7])
    torch.testing.assert_close(one.effects.promoted_by[7], -two.effects.suppressed_by[7])


def test_promoted_tokens_are_the_largest_logit_effects(model):
    sae = random_sae()
    effects = look(sae, model, some_tokens(), outlier_factor=None).effects
    direct = model.logit_effects(sae.W_dec.detach())
    assert effects is not None
    for latent in range(sae.d_sae):
        assert effects.promoted[latent].tolist() == direct[latent].topk(10).indices.tolist()
        assert effects.suppressed[latent].tolist() == (-direct[latent]).topk(10).indices.tolist()


def test_where_logits_cannot_be_read_the_look_says_why(model):
    sae = random_sae(hook="blocks.1.mlp.hook_in")
    found = look(sae, model, some_tokens(), outlier_factor=None)
    assert found.effects is None
    assert "does not write to the residual stream" in found.effects_missing
    assert "promotes" not in found.describe(int(found.counts.argmax()))


def test_a_dead_latent_says_so(model):
    sae = random_sae()
    with torch.no_grad():
        sae.b_enc[5] = -1e9
    found = look(sae, model, some_tokens(), outlier_factor=None)
    assert found.describe(5).startswith("latent 5: never fired on 99 tokens")
    assert (found.tails[0].row[5] == -1).all()
    assert (found.ids[0][5] == -1).all()


def test_a_description_marks_the_peak_and_names_the_density(model):
    sae, tokens = random_sae(), some_tokens()
    found = look(sae, model, tokens, context=(2, 2), outlier_factor=None)
    latent = int(found.counts.argmax())
    row, position = int(found.tails[0].row[latent, 0]), int(found.tails[0].position[latent, 0])
    peak = model.token_strings([int(tokens.ids[row, position])])[0]
    text = found.describe(latent, n_examples=1)
    assert f"«{peak}»" in text
    assert text.count("«") == 1
    assert f"fires on {one_in(int(found.counts[latent]), 99)} tokens" in text
    assert "promotes" in text
    assert "suppresses" in text


def test_picks_are_alive_not_dense_spread_and_repeatable(model):
    sae, tokens = random_sae(TopK(2), d_sae=200), some_tokens(rows=30)
    found = look(sae, model, tokens, n_examples=1, outlier_factor=None)
    picked = found.pick(5, seed=3)
    density = {int(i): float(d) for i, d in zip(found.latents, found.density, strict=True)}
    assert picked == found.pick(5, seed=3)
    assert len(set(picked)) == 5
    assert all(0 < density[latent] <= 0.1 for latent in picked)
    assert [density[latent] for latent in picked] == sorted(density[latent] for latent in picked)
    assert density[picked[0]] < density[picked[-1]]


def test_picking_from_a_dictionary_that_never_fires_picks_nothing(model):
    sae = random_sae()
    with torch.no_grad():
        sae.b_enc.fill_(-1e9)
    assert look(sae, model, some_tokens(), outlier_factor=None).pick(5) == []


def test_norm_outliers_are_not_looked_at(model):
    sae, tokens = random_sae(), some_tokens()
    everything = look(sae, model, tokens, outlier_factor=None)
    fewer = look(sae, model, tokens, outlier_factor=1.05)
    assert 0 < fewer.n_tokens < everything.n_tokens == tokens.n_kept


def test_max_tokens_stops_after_whole_rows(model):
    found = look(random_sae(), model, some_tokens(), max_tokens=20, outlier_factor=None)
    assert found.n_tokens == 2 * 11


def test_histograms_double_their_range_exactly():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(300, generator=generator) * 2.0 ** torch.randint(
        -9, 9, (300,), generator=generator
    )
    latents = torch.randint(0, 3, (300,), generator=generator)
    histogram = DoublingHistogram(3, n_bins=16)
    for part in torch.arange(300).split(11):
        histogram.update(latents[part], values[part])
    for latent in range(3):
        mine = values[latents == latent].double()
        top = 2.0 ** (mine.max().log2().floor() + 1)
        assert histogram.top()[latent] == top
        bins = (mine / top * 16).floor().long()
        assert histogram.counts[latent].tolist() == torch.bincount(bins, minlength=16).tolist()


def test_densities_are_shown_as_one_in_so_many():
    assert one_in(0, 100) == "never"
    assert one_in(40, 100) == "1 in 2.5"
    assert one_in(1, 12345) == "1 in 12,345"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latents": [40]}, r"latents=\[40\] are not in the dictionary, which has 0 to 39"),
        ({"latents": []}, "No latents were named"),
        ({"n_examples": 0}, "at least one example"),
    ],
)
def test_impossible_requests_are_refused(model, settings, message):
    with pytest.raises(ConfigError, match=message):
        look(random_sae(), model, some_tokens(), outlier_factor=None, **settings)


def test_an_unwatched_latent_cannot_be_described(model):
    found = look(random_sae(), model, some_tokens(), latents=[3, 9], outlier_factor=None)
    with pytest.raises(ConfigError, match="Latent 5 was not looked at; 2 were, from 3 to 9"):
        found.describe(5)


def test_text_with_nothing_to_measure_is_refused(model):
    tokens = some_tokens()
    nothing = dataclasses.replace(tokens, kept=torch.zeros_like(tokens.kept))
    with pytest.raises(DataError, match="All 126 token positions are excluded"):
        look(random_sae(), model, nothing, outlier_factor=None)


def test_codes_of_other_tokens_are_refused():
    window = TokenWindow(torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 3).long(), 0)
    collector = TailCollector(torch.arange(4), 4, sign=1, n_examples=1, context=(1, 1))
    with pytest.raises(ShapeError, match="measures 6 tokens but there are codes for 5"):
        collector.update(SparseCodes.from_dense(torch.ones(5, 4)), window)
