"""Is what the tables say true? Compared with the dense matrix of all latents."""

import numpy as np
import pytest
import torch

from saelab.activation_functions import TopK
from saelab.atlas.cooccurrence import association
from tests.atlas.cases import CONFIG, built, dense_latents, dictionary, model, signed, text

TOKENS = text()


@pytest.fixture(scope="module", params=["signed", "unsigned"])
def case(request, tmp_path_factory):
    sae = signed() if request.param == "signed" else dictionary()
    atlas = built(tmp_path_factory.mktemp("atlas") / request.param, sae, TOKENS)
    return sae, atlas, dense_latents(sae, TOKENS)


def sides(atlas, dense):
    """(latent, sign, strength of every place) of each tail."""
    for latent in range(atlas.d_sae):
        for sign in atlas.signs:
            yield latent, sign, (sign * dense[:, latent]).clamp_min(0)


def test_counts_densities_and_extremes_are_those_of_the_dense_matrix(case):
    sae, atlas, dense = case
    found = atlas.arrow("latents").to_pydict()
    n = int(TOKENS.kept.sum())
    assert atlas.n_tokens == n
    assert found["latent"] == list(range(sae.d_sae))
    assert found["count"] == (dense != 0).sum(0).tolist()
    assert found["count_pos"] == (dense > 0).sum(0).tolist()
    assert found["count_neg"] == (dense < 0).sum(0).tolist()
    assert found["density"] == pytest.approx(((dense != 0).sum(0).double() / n).tolist())
    torch.testing.assert_close(torch.tensor(found["max"]), dense.amax(0).clamp_min(0))
    torch.testing.assert_close(torch.tensor(found["min"]), dense.amin(0).clamp_max(0))
    mean = dense.abs().sum(0) / (dense != 0).sum(0).clamp_min(1)
    torch.testing.assert_close(torch.tensor(found["mean"]), mean)
    torch.testing.assert_close(torch.tensor(found["strongest"]), dense.abs().amax(0))


def test_weights_give_norms_bias_cosine_and_the_nearest_directions(case):
    sae, atlas, _ = case
    found = atlas.arrow("latents").to_pydict()
    torch.testing.assert_close(torch.tensor(found["bias"]), sae.b_enc.detach())
    torch.testing.assert_close(torch.tensor(found["dec_norm"]), sae.W_dec.detach().norm(dim=1))
    torch.testing.assert_close(torch.tensor(found["enc_norm"]), sae.W_enc.detach().norm(dim=0))
    unit = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2 if not atlas.signed else 0)
    score = cosine.abs() if atlas.signed else cosine
    card = atlas.latent(7)
    expected = score[7].topk(4).indices.tolist()
    assert [one.latent for one in card.neighbors] == expected
    assert [one.cosine for one in card.neighbors] == pytest.approx(cosine[7, expected].tolist())
    assert found["nearest"][7] == expected[0]


def test_histograms_and_intervals_have_equal_width_no_zeros_and_add_up_to_the_active_tokens(case):
    _, atlas, dense = case
    for latent, sign, strength in sides(atlas, dense):
        tail = next(t for t in atlas.latent(latent).tails if t.sign == sign)
        active = strength[strength > 0].double().numpy()
        assert sum(tail.histogram.counts) == tail.count == len(active)
        if not len(active):
            assert tail.intervals == ()
            continue
        top = float(active.max())
        edges = np.linspace(0, top, CONFIG.intervals + 1)
        expected = np.histogram(active, edges)[0]
        assert [one.count for one in tail.intervals] == expected.tolist()
        assert [one.low for one in tail.intervals] == pytest.approx(edges[:-1])
        assert [one.high for one in tail.intervals] == pytest.approx(edges[1:])
        assert sum(one.share for one in tail.intervals) == pytest.approx(1)
        assert list(tail.histogram.counts) == np.histogram(active, 10, (0, top))[0].tolist()
        # the lowest interval begins at 0 but holds active tokens only
        assert tail.intervals[0].count == int((active < edges[1]).sum())


def test_examples_are_the_strongest_of_each_row_and_ties_go_to_the_earliest(case):
    _, atlas, dense = case
    for latent, sign, strength in sides(atlas, dense):
        rows = strength.reshape(TOKENS.n_rows, TOKENS.length)
        best = [(float(row.max()), i, int(row.argmax())) for i, row in enumerate(rows)]
        expected = sorted((b for b in best if b[0] > 0), key=lambda b: (-b[0], b[1]))[: CONFIG.top]
        tail = next(t for t in atlas.latent(latent).tails if t.sign == sign)
        assert [(one.row, one.position) for one in tail.top()] == [b[1:] for b in expected]
        assert [one.strength for one in tail.top()] == pytest.approx([b[0] for b in expected])


def test_draws_come_from_their_interval_and_their_quantile(case):
    _, atlas, dense = case
    checked = 0
    for latent, sign, strength in sides(atlas, dense):
        tail = next(t for t in atlas.latent(latent).tails if t.sign == sign)
        active = strength[strength > 0]
        order = sorted(active.tolist())
        n = CONFIG.quantiles
        for part, interval in enumerate(tail.intervals):
            drawn = tail.of_interval(part)
            assert len(drawn) == min(CONFIG.per_interval, interval.count)
            assert all(interval.low - 1e-5 <= one.strength <= interval.high + 1e-5 for one in drawn)
        for part in range(n if tail.count else 0):
            members = [v for i, v in enumerate(order) if i * n // len(order) == part]
            drawn = tail.of_quantile(part)
            assert len(drawn) == min(CONFIG.per_quantile, len(members))
            for one in drawn:
                assert min(members) - 1e-5 <= one.strength <= max(members) + 1e-5
            if members:
                assert tail.quantile_edges[part] == pytest.approx(members[0])
                checked += 1
        if tail.count:
            assert tail.quantile_edges[-1] == pytest.approx(tail.max)
    assert checked > 100


def test_windows_hold_tokens_and_activations_of_the_same_document_only(case):
    _, atlas, dense = case
    dense = dense.reshape(TOKENS.n_rows, TOKENS.length, -1)
    for latent in range(0, atlas.d_sae, 5):
        for tail in atlas.latent(latent).tails:
            for one in (*tail.examples, *tail.near_misses):
                first = one.position - one.peak
                places = range(first, first + len(one.token_ids))
                assert one.peak <= CONFIG.before
                assert len(places) <= CONFIG.before + 1 + CONFIG.after
                ids, document = TOKENS.ids[one.row], TOKENS.document[one.row]
                assert list(one.token_ids) == ids[first : first + len(places)].tolist()
                assert len(set(document[list(places)].tolist())) == 1
                expected = dense[one.row, list(places), latent].tolist()
                assert list(one.activations) == pytest.approx(expected, abs=1e-5)
                assert one.document == TOKENS.document_names[int(document[one.position])]
                before = first > 0 and document[first - 1] == document[one.position]
                assert one.cut[0] == before


def test_near_misses_are_silent_on_a_token_the_tail_fires_on(case):
    _, atlas, dense = case
    seen = 0
    for latent, sign, strength in sides(atlas, dense):
        tail = next(t for t in atlas.latent(latent).tails if t.sign == sign)
        mine = set(TOKENS.ids.reshape(-1)[strength > 0].tolist())
        for one in tail.near_misses:
            assert one.activations[one.peak] == 0
            assert one.token_ids[one.peak] in mine
            assert TOKENS.kept[one.row, one.position]
            seen += 1
    assert seen > 50


def test_random_windows_are_silent_throughout(case):
    _, atlas, dense = case
    for latent, sign, strength in list(sides(atlas, dense))[:20]:
        windows = atlas.random_windows(latent, sign, n=6)
        for one in windows:
            place = one.row * TOKENS.length + one.position
            assert float(strength[place : place + len(one.token_ids)].max()) == 0
            assert TOKENS.ids.reshape(-1)[place] == one.token_ids[0]


def test_token_profiles_count_tokens_and_their_enrichment(case):
    _, atlas, dense = case
    ids = TOKENS.ids.reshape(-1)
    measured = TOKENS.kept.reshape(-1)
    for latent, sign, strength in list(sides(atlas, dense))[::3]:
        tail = next(t for t in atlas.latent(latent).tails if t.sign == sign)
        entries = [one for one in tail.profile if one.family == "token"]
        fired = ids[strength > 0]
        for one in entries:
            (token,) = one.token_ids
            assert one.fires == int((fired == token).sum())
            assert one.corpus == int((ids[measured] == token).sum())
            assert one.precision == pytest.approx(one.fires / one.corpus)
            assert one.share == pytest.approx(one.fires / tail.count)
            assert one.lift == pytest.approx(one.share / (one.corpus / atlas.n_tokens), rel=1e-5)
            where = (strength > 0) & (ids == token)
            assert one.mean == pytest.approx(float(strength[where].mean()), rel=1e-5)
        listed = [one.fires for one in entries if one.count_rank is not None]
        assert listed == sorted(torch.bincount(fired).tolist(), reverse=True)[: len(listed)]


@pytest.mark.parametrize("family", ["bigram", "trigram", "next"])
def test_n_grams_stay_within_a_document(case, family):
    _, atlas, dense = case
    offsets = {"bigram": (-1, 0), "trigram": (-2, -1, 0), "next": (1,)}[family]
    rows = TOKENS.ids.tolist()
    document = TOKENS.document.tolist()
    for latent, sign, strength in list(sides(atlas, dense))[::7]:
        fires = strength.reshape(TOKENS.n_rows, -1) > 0
        expected: dict[tuple, list[int]] = {}
        for row in range(TOKENS.n_rows):
            for position in range(TOKENS.length):
                places = [position + offset for offset in offsets]
                if not TOKENS.kept[row, position] or max(places) >= TOKENS.length:
                    continue
                if min(places) < 0 or any(
                    document[row][p] != document[row][position] for p in places
                ):
                    continue
                entry = expected.setdefault(tuple(rows[row][p] for p in places), [0, 0])
                entry[0] += bool(fires[row, position])
                entry[1] += 1
        tail = next(t for t in atlas.latent(latent).tails if t.sign == sign)
        for one in tail.profile:
            if one.family == family:
                assert [one.fires, one.corpus] == expected[one.token_ids]


def test_positions_and_documents_say_where_a_tail_fires(case):
    _, atlas, dense = case
    n_parts = 32
    part = torch.arange(TOKENS.length) * n_parts // TOKENS.length
    kept = TOKENS.kept.sum(0)
    document = TOKENS.document.reshape(-1)
    for latent, sign, strength in list(sides(atlas, dense))[::4]:
        tail = next(t for t in atlas.latent(latent).tails if t.sign == sign)
        fires = (strength > 0).reshape(TOKENS.n_rows, -1).sum(0)
        for one in range(n_parts):
            total = int(kept[part == one].sum())
            share = int(fires[part == one].sum()) / total if total else 0.0
            assert tail.positions[one] == pytest.approx(share)
        counts = torch.bincount(document[strength > 0])
        assert tail.n_documents == int((counts > 0).sum())
        expected = sorted(counts[counts > 0].tolist(), reverse=True)[:3]
        assert [count for _, count in tail.top_documents] == expected


def test_cooccurrence_is_that_of_the_dense_matrix(case):
    _, atlas, dense = case
    fires = torch.stack([strength > 0 for _, _, strength in sides(atlas, dense)]).double()
    keys = [(latent, sign) for latent, sign, _ in sides(atlas, dense)]
    both, count = fires @ fires.T, fires.sum(1)
    n = atlas.n_tokens
    for place, (latent, sign) in enumerate(keys[::5]):
        place *= 5
        tail = next(t for t in atlas.latent(latent).tails if t.sign == sign)
        expected = []
        for other, key in enumerate(keys):
            if key[0] != latent and both[place, other] >= 2:
                a, b, c = (
                    np.array([float(x)]) for x in (both[place, other], count[place], count[other])
                )
                phi, jaccard, npmi = association(a, b, c, n)
                if phi[0] > 0:
                    expected.append((float(phi[0]), float(jaccard[0]), float(npmi[0])))
        expected.sort(reverse=True)
        found = [(one.phi, one.jaccard, one.npmi) for one in tail.cooccurring]
        assert len(found) == min(len(expected), CONFIG.cooccurring)
        np.testing.assert_allclose(
            [f[0] for f in found], [e[0] for e in expected[: len(found)]], 1e-5
        )
        for one in tail.cooccurring:
            assert one.both == both[place, keys.index((one.latent, one.sign))]


def test_association_by_hand():
    # 10 tokens; i on 4, j on 5, both on 3: phi = (30 - 20) / sqrt(4*6*5*5) = 10 / sqrt(600)
    phi, jaccard, npmi = association(np.array([3]), np.array([4]), np.array([5]), 10)
    assert phi[0] == pytest.approx(10 / 600**0.5)
    assert jaccard[0] == pytest.approx(0.5)
    assert npmi[0] == pytest.approx(np.log(1.5) / -np.log(0.3))


def test_promoted_tokens_are_the_largest_logit_effects(case):
    sae, atlas, _ = case
    effects = model().logit_effects(sae.W_dec.detach())
    for latent in (0, 11, 39):
        tail = atlas.latent(latent).tails[0]
        best = effects[latent].topk(10)
        assert [one.token_id for one in tail.promoted] == best.indices.tolist()
        assert [one.effect for one in tail.promoted] == pytest.approx(
            best.values.tolist(), rel=1e-4
        )
        worst = effects[latent].topk(10, largest=False)
        assert [one.token_id for one in tail.suppressed] == worst.indices.tolist()
        if atlas.signed:
            negative = atlas.latent(latent).negative
            assert [one.token_id for one in negative.promoted] == worst.indices.tolist()
            assert [one.effect for one in negative.promoted] == pytest.approx(
                (-worst.values).tolist(), rel=1e-4
            )


def test_logit_histograms_count_the_whole_vocabulary(case):
    sae, atlas, _ = case
    effects = model().logit_effects(sae.W_dec.detach()).double()
    for latent in (3, 20):
        card = atlas.latent(latent)
        assert sum(card.logit_histogram.counts) == model().d_vocab
        assert card.logit_histogram.low == pytest.approx(float(effects[latent].min()), rel=1e-5)
        centered = effects[latent] - effects[latent].mean()
        kurtosis = centered.pow(4).mean() / centered.square().mean() ** 2 - 3
        assert card.logit_kurtosis == pytest.approx(float(kurtosis), rel=1e-3)


def test_a_latent_that_reads_one_token_is_called_by_it(tmp_path):
    tokens = text()
    sae = dictionary(TopK(1))
    with torch.no_grad():  # latent 0 sees the embedding of token 65 and nothing else comes near
        x = model().activations(tokens.ids.long(), ["blocks.0.hook_resid_pre"])
        (x,) = x.values()
        direction = x[tokens.ids == 65][0]
        sae.W_enc.zero_()
        sae.b_enc.fill_(-1e3)
        sae.W_enc[:, 0] = direction / direction.norm()
        sae.b_enc[0] = -0.99 * float(direction.norm())
        sae.b_dec.zero_()
    sae.hook = "blocks.0.hook_resid_pre"
    card = built(tmp_path, sae, tokens).latent(0)
    assert card.count == int((tokens.ids == 65)[tokens.kept].sum())
    best = card.positive.labels[0]
    (word,) = model().token_strings([65])
    assert (best.kind, best.text, best.score) == ("token", f"“{word}”", 1.0)
    assert (best.precision, best.recall) == (1.0, 1.0)


def test_a_dead_latent_has_an_empty_page(tmp_path):
    sae = dictionary()
    with torch.no_grad():
        sae.b_enc[5] = -1e9
    card = built(tmp_path, sae).latent(5)
    assert card.dead
    assert card.label == ""
    tail = card.positive
    assert (tail.count, tail.examples, tail.intervals, tail.cooccurring) == (0, (), (), ())
    assert tail.near_misses == tail.profile == ()
    assert len(tail.promoted) == 10


def test_a_dictionary_that_never_fires_has_an_atlas_too(tmp_path):
    sae = dictionary()
    with torch.no_grad():
        sae.b_enc.fill_(-1e9)
    atlas = built(tmp_path, sae)
    assert atlas.count("count > 0") == 0
    assert atlas.latent(3).positive.max == 0
    assert atlas.search("A") == [] or all(hit.field == "promoted" for hit in atlas.search("A"))


def test_where_logits_cannot_be_read_the_page_says_why(tmp_path):
    card = built(tmp_path, dictionary(hook="blocks.1.mlp.hook_in")).latent(3)
    assert "does not write to the residual stream" in card.effects_missing
    assert card.positive.promoted == ()
    assert card.logit_histogram is None


def test_heads_of_an_attention_dictionary_add_up_to_one(tmp_path):
    sae = dictionary(hook="blocks.1.attn.hook_z")
    card = built(tmp_path, sae).latent(3)
    lengths = sae.W_dec.detach()[3].reshape(4, 8).norm(dim=1)
    assert list(card.heads) == pytest.approx((lengths / lengths.sum()).tolist())


def test_norm_outliers_are_left_out(tmp_path):
    everything = built(tmp_path / "all")
    fewer = built(tmp_path / "fewer", outlier_factor=1.05)
    assert 0 < fewer.n_tokens < everything.n_tokens
    assert "norm exceeds" in fewer.about["excluded"]
