"""Fixture C: turning a latent of a signed dictionary around changes no figure, or mirrors it.

Encoder row, bias and decoder row of some latents change sign, so the reconstruction is the same.
Anything in the atlas that changes otherwise has a hidden `> 0`, `max` or `clamp`.
"""

import dataclasses

import pytest
import torch

from tests.atlas.cases import built, signed, text

FLIPPED = (3, 7, 8, 21)


def flipped_dictionary():
    sae = signed()
    with torch.no_grad():
        for latent in FLIPPED:
            sae.W_dec[latent] *= -1
            sae.W_enc[:, latent] *= -1
            sae.b_enc[latent] *= -1
    return sae


@pytest.fixture(scope="module")
def atlases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flip")
    return built(folder / "one"), built(folder / "two", flipped_dictionary())


def turn(latent: int) -> int:
    return -1 if latent in FLIPPED else 1


def close(one, other):
    assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_the_reconstruction_is_the_same():
    x = torch.randn(50, 32)
    one, two = signed(), flipped_dictionary()
    torch.testing.assert_close(one(x), two(x))


def test_scalars_of_every_latent_are_unchanged_or_mirrored(atlases):
    one, two = (atlas.arrow("latents").to_pylist() for atlas in atlases)
    same = ("count", "density", "strongest", "mean", "enc_norm", "dec_norm", "enc_dec_cosine",
            "n_documents", "logit_std", "logit_kurtosis", "nearest")  # fmt: skip
    mirrored = ("bias", "logit_skew")
    swapped = {"count_pos": "count_neg", "density_pos": "density_neg", "promoted": "suppressed",
               "top_token_pos": "top_token_neg", "auto_label_pos": "auto_label_neg"}  # fmt: skip
    for a, b in zip(one, two, strict=True):
        sign = turn(a["latent"])
        for name in same:
            close(a[name], b[name]) if isinstance(a[name], float) else None
            assert isinstance(a[name], float) or a[name] == b[name], (a["latent"], name)
        for name in mirrored:
            close(sign * a[name], b[name])
        for left, right in swapped.items():
            pair = (b[left], b[right]) if sign > 0 else (b[right], b[left])
            assert (a[left], a[right]) == pytest.approx(pair), (a["latent"], left)
        close(a["max"], b["max"] if sign > 0 else -b["min"])
        close(a["nearest_cosine"], sign * turn(a["nearest"]) * b["nearest_cosine"])
        if a["count_pos"] != a["count_neg"]:
            assert a["auto_label"] == b["auto_label"]


def test_each_tail_becomes_the_other(atlases):
    for latent in range(40):
        one, two = (atlas.latent(latent) for atlas in atlases)
        others = two.tails if turn(latent) > 0 else tuple(reversed(two.tails))
        for a, b in zip(one.tails, others, strict=True):
            mirror = turn(latent)
            assert b.sign == mirror * a.sign
            for name in ("count", "density", "n_documents", "top_documents", "positions"):
                assert getattr(a, name) == getattr(b, name), (latent, name)
            close(a.max, b.max)
            close(a.mean, b.mean)
            assert a.histogram.counts == b.histogram.counts
            assert [x.count for x in a.intervals] == [x.count for x in b.intervals]
            close(list(a.quantile_edges), list(b.quantile_edges))
            assert len(a.examples) == len(b.examples)
            for x, y in zip(
                (*a.examples, *a.near_misses), (*b.examples, *b.near_misses), strict=True
            ):
                close([mirror * value for value in x.activations], list(y.activations))
                same = {"activations": (), "sign": 0, "strength": 0.0}
                assert dataclasses.replace(x, **same) == dataclasses.replace(y, **same)
            assert [x.token_ids for x in a.profile] == [x.token_ids for x in b.profile]
            assert [x.fires for x in a.profile] == [x.fires for x in b.profile]
            assert [x.token_id for x in a.promoted] == [x.token_id for x in b.promoted]
            close([x.effect for x in a.promoted], [x.effect for x in b.promoted])
            assert [x.token_id for x in a.suppressed] == [x.token_id for x in b.suppressed]
            assert [(x.kind, x.text) for x in a.labels] == [(x.kind, x.text) for x in b.labels]
            close([x.score for x in a.labels], [x.score for x in b.labels])
            close([x.phi for x in a.cooccurring], [x.phi for x in b.cooccurring])
            assert {(x.latent, turn(x.latent) * x.sign) for x in a.cooccurring if x.phi > 0.2} == {
                (x.latent, x.sign) for x in b.cooccurring if x.phi > 0.2
            }
            assert a.label == b.label


def test_neighbors_keep_their_size_and_mirror_their_sign(atlases):
    for latent in range(40):
        one, two = (atlas.latent(latent) for atlas in atlases)
        for a, b in zip(one.neighbors, two.neighbors, strict=True):
            assert a.latent == b.latent
            close(turn(latent) * turn(a.latent) * a.cosine, b.cosine)


def test_the_two_dictionaries_are_found_to_be_the_same(atlases):
    for by in ("cosine", "correlation"):
        found = atlases[0].compare(atlases[1], by)
        assert found.shared == 1.0
        assert (found.table["latent"] == found.table["other"]).all()
        assert found.table["mutual"].all()
        signs = [turn(latent) for latent in found.table["latent"]]
        close((found.table["similarity"] * signs).tolist(), [1.0] * len(signs)) if (
            by == "correlation"
        ) else None
        assert ((found.table["similarity"] * signs) > 0.99).all()
        assert found.shared_null < 0.5


def test_searching_finds_the_same_latents(atlases):
    for word in ("A", "B", "C"):
        one, two = ({hit.latent for hit in atlas.search(word)} for atlas in atlases)
        assert one == two
    assert text().n_rows == atlases[0].about["n_rows"]
