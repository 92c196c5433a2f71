"""Planted relations are found on pairs they were not fitted to; noise is not."""

import pytest
import torch

from saelab.errors import ConfigError, DataError
from saelab.geometry import (
    difference_classes,
    function_vectors,
    parallel_differences,
    separate_relations,
)


def pairs_of(n_relations=6, per=24, d=64, signal=1.0, noise=0.3):
    generator = torch.Generator().manual_seed(100)
    relations = torch.arange(n_relations).repeat_interleave(per)
    vectors = torch.nn.functional.normalize(torch.randn(n_relations, d, generator=generator), dim=1)
    sources = torch.randn(len(relations), d, generator=generator)
    jitter = noise * torch.randn(len(relations), d, generator=generator) / d**0.5
    return sources, sources + signal * vectors[relations] + jitter, relations


def test_noise_is_not_separated_on_held_out_pairs():
    # The published twelve relations of 80 pairs, in 128 dimensions for speed.
    relations = torch.arange(12).repeat_interleave(80)
    noise = torch.randn(960, 128, generator=torch.Generator().manual_seed(0))
    found = separate_relations(noise, relations, n_null=2)
    assert abs(found.held_out.value) < 0.1
    assert abs(found.raw) < 0.1
    assert abs(found.held_out.excess) < 0.03


def test_fewer_pairs_than_dimensions_look_separated_only_where_they_were_fitted():
    relations = torch.arange(12).repeat_interleave(20)
    noise = torch.randn(240, 200, generator=torch.Generator().manual_seed(0))
    found = separate_relations(noise, relations, n_null=1)
    assert found.in_sample > 0.2
    assert abs(found.held_out.value) < 0.1


def test_relations_under_a_large_distractor_are_found_on_held_out_pairs():
    sources, targets, relations = pairs_of(d=96, per=40, noise=1.0)
    distractor = torch.nn.functional.normalize(torch.randn(6, 96), dim=1)
    # Noise is 0.1 a dimension, the distractors 6 times that; relations are 1 long.
    differences = targets - sources + 0.6 * torch.randn(len(relations), 6) @ distractor
    found = separate_relations(differences, relations, n_null=3)
    assert found.principal < 0.05
    assert found.held_out.value > max(0.5, found.raw + 0.4)
    assert abs(found.held_out.mean) < 0.1
    assert "do not read" in str(found)


def test_pairs_of_one_group_stay_on_one_side():
    sources, targets, relations = pairs_of()
    groups = torch.arange(len(relations)) // 4
    found = separate_relations(targets - sources, relations, groups=groups, n_null=1)
    assert found.held_out.value > 0.3
    with pytest.raises(DataError, match="A relation has 0"):
        separate_relations(targets - sources, relations, groups=relations, n_null=1)


def test_settings_of_discriminant_analysis_are_checked():
    sources, targets, relations = pairs_of()
    with pytest.raises(ConfigError, match="1 to 5 directions"):
        separate_relations(targets - sources, relations, n_components=9)
    with pytest.raises(ConfigError, match="held_out=1"):
        separate_relations(targets - sources, relations, held_out=1.0)
    with pytest.raises(DataError, match="NaN"):
        separate_relations(targets * torch.nan, relations)


def test_planted_differences_are_parallelograms_and_a_longer_one_is_a_trapezoid():
    sources, targets, relations = pairs_of(noise=0.1)
    found = parallel_differences(sources, targets, relations, n_null=20)
    assert found.cosine.value > 0.95
    assert abs(found.cosine.mean) < 0.3
    assert found.parallelograms > 0.95
    assert found.trapezoids == 0
    longer = sources + (targets - sources) * (1 + (torch.arange(len(relations)) % 2))[:, None]
    mixed = parallel_differences(sources, longer, relations, n_null=1)
    assert mixed.trapezoids == pytest.approx(24 / 46, abs=0.01)  # 12 * 12 of 276 pairs of 24
    assert mixed.cosine.value == pytest.approx(found.cosine.value, abs=1e-6)


def test_rotating_and_scaling_change_nothing():
    sources, targets, relations = pairs_of()
    rotation = torch.linalg.qr(torch.randn(64, 64)).Q
    one = parallel_differences(sources, targets, relations, n_null=5)
    other = parallel_differences(
        3 * sources @ rotation + 1, 3 * targets @ rotation + 1, relations, n_null=5
    )
    assert one.cosine.value == pytest.approx(other.cosine.value, abs=1e-5)
    assert one.gap == pytest.approx(other.gap, abs=1e-5)
    assert one.cosine.draws == pytest.approx(other.cosine.draws, abs=1e-5)


def test_pairs_that_share_a_word_are_parallel_by_that_alone_and_are_left_out():
    # Random words; pairs (0, j) share their first word, so differences have a cosine of 1/2.
    words = torch.randn(40, 512)
    pairs = torch.stack([torch.zeros(30, dtype=torch.int64), torch.arange(1, 31)], 1)
    pairs[15:, 0] = torch.arange(31, 40).repeat(2)[:15]
    relations = torch.tensor([0] * 15 + [1] * 15)
    a, b = words[pairs[:, 0]], words[pairs[:, 1]]
    fooled = parallel_differences(a, b, relations, n_null=20)
    assert fooled.cosine.value > 0.2
    honest = parallel_differences(a, b, relations, words=pairs, n_null=20)
    assert abs(honest.cosine.value) < 0.03


def test_a_relations_vector_finds_targets_of_pairs_it_has_not_seen():
    sources, targets, relations = pairs_of(signal=16.0, noise=1.0)
    found = function_vectors(sources, targets, relations)
    assert found.accuracy.value > 0.95
    assert found.accuracy.mean < 0.6
    assert found.without < 0.95
    noise = function_vectors(sources, torch.randn_like(sources), relations)
    assert noise.accuracy.value < 0.1
    # Targets beside their sources are found with no vector at all, which `without` shows.
    assert function_vectors(sources, sources + 0.01 * targets, relations).without == 1
    with pytest.raises(DataError, match="1 relations"):
        function_vectors(sources, targets, torch.zeros_like(relations))


def planted_crystals(d=48):
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(30, d, generator=generator)
    base = torch.nn.functional.normalize(base, dim=1)
    step = torch.nn.functional.normalize(torch.randn(1, d, generator=generator), dim=1)
    partners = base[:12] + 0.6 * step
    return torch.cat([base, partners]), {(i, 30 + i) for i in range(12)}


def test_a_planted_class_of_parallel_differences_is_found_and_random_directions_have_none():
    directions, planted = planted_crystals()
    found = difference_classes(directions, n_neighbors=2, n_null=2)
    largest = {tuple(sorted(pair)) for pair in found.classes[0]}
    assert len(largest & planted) >= 9
    assert found.share.excess > 0.1
    orientation = {pair[0] < pair[1] for pair in found.classes[0] if tuple(sorted(pair)) in planted}
    assert len(orientation) == 1  # all along the step, or all against it
    noise = difference_classes(torch.randn(42, 48), n_neighbors=2, n_null=2)
    assert not noise.classes
    assert noise.share.value == 0


def test_no_class_shares_a_latent():
    directions, _ = planted_crystals()
    for one in difference_classes(directions, n_neighbors=4, bar=0.4, n_null=1).classes:
        latents = [latent for pair in one for latent in pair]
        assert len(set(latents)) == len(latents)


def test_equal_directions_have_no_difference():
    twice = torch.randn(20, 16).repeat(2, 1)
    assert not difference_classes(twice, n_neighbors=1, n_null=1).classes
