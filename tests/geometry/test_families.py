"""Stitching, splitting, absorption and trees, on dictionaries whose relations were planted."""

import pytest
import torch

from saelab.activation_functions import ReLU
from saelab.errors import ConfigError, DataError, ShapeError
from saelab.geometry import latent_tree, splitting, stitch
from saelab.metrics import fvu
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes


def orthonormal(n):
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(2))).Q


def oracle(directions):
    """A dictionary that reads and writes orthonormal directions exactly."""
    sae = SAE(directions.shape[1], len(directions), ReLU())
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def mixtures(n_tokens, n, density=0.2):
    generator = torch.Generator().manual_seed(4)
    on = torch.rand(n_tokens, n, generator=generator) < density
    return on * (1 + torch.rand(n_tokens, n, generator=generator))


def test_novel_latents_lower_the_error_and_known_ones_raise_it():
    atoms = orthonormal(16)
    x = mixtures(400, 16) @ atoms
    small, large = oracle(atoms[:10]), oracle(atoms)
    found = stitch(small, large, x)
    assert found.novel.tolist() == [False] * 10 + [True] * 6
    assert found.improving(found.novel) == 1
    assert found.improving(~found.novel) == 0
    assert found.fvu["small + novel"] == pytest.approx(0, abs=1e-6)
    assert found.fvu["swapped"] == pytest.approx(found.fvu["small"], abs=1e-6)
    assert found.fvu["small + 6 others"] > found.fvu["small"] > 0.1
    by_chance = found.improving(found.novel, null=True)
    assert by_chance is not None
    assert by_chance < 0.5
    assert "6 latents of novel type: 100.0% lower the error" in str(found)


def test_the_change_of_one_latent_is_what_adding_it_does():
    torch.manual_seed(1)
    small, large = SAE(12, 20, ReLU(), seed=1), SAE(12, 30, ReLU(), seed=2)
    x = torch.randn(50, 12)
    found = stitch(small, large, x, bar=0.5)
    codes, recons = large.encode(x).dense(), small(x)
    for latent in (0, 7, 29):
        added = recons + codes[:, latent : latent + 1] * large.W_dec[latent]
        change = ((x - added).square().sum(1) - (x - recons).square().sum(1)).mean()
        assert float(found.change[latent]) == pytest.approx(float(change.detach()), abs=1e-5)
    assert found.fvu["large"] == pytest.approx(fvu(x, large(x).detach()))
    everything = recons + codes @ large.W_dec * found.novel.any()
    assert everything.shape == x.shape


def test_a_dictionary_stitched_to_itself_has_nothing_novel():
    atoms = orthonormal(12)
    found = stitch(oracle(atoms[:8]), oracle(atoms[:8].flip(0)), mixtures(200, 12) @ atoms)
    assert not bool(found.novel.any())
    assert found.fvu["swapped"] == pytest.approx(found.fvu["small"], abs=1e-6)
    assert found.improving(found.novel) is None
    assert found.to_json()["novel"]["latents"] == 0


def test_only_dictionaries_of_one_place_are_stitched():
    x = torch.randn(5, 6)
    with pytest.raises(ShapeError, match="only dictionaries of one place"):
        stitch(SAE(6, 8, ReLU()), SAE(7, 8, ReLU()), x)
    with pytest.raises(ConfigError, match="bar=1"):
        stitch(SAE(6, 8, ReLU()), SAE(6, 8, ReLU()), x, bar=1.0)
    with pytest.raises(DataError, match="1 activations are too few"):
        stitch(SAE(6, 8, ReLU()), SAE(6, 8, ReLU()), x[:1])


def split_dictionaries(n_tokens=3000):
    """Narrow latents 0 to 3; 0 splits in two, 1 in three, 2 stays, 3 is absorbed in part by 6."""
    generator = torch.Generator().manual_seed(0)
    axes = orthonormal(16)
    narrow = axes[:4]

    def near(parent, other):
        return torch.nn.functional.normalize(axes[parent] + 0.6 * axes[other], dim=0)

    wide = torch.stack(
        [near(0, 4), near(0, 5), near(1, 6), near(1, 7), near(1, 8), axes[2], near(3, 9), axes[10]]
    )
    fires = torch.rand(n_tokens, 4, generator=generator) < 0.15
    which = torch.randint(0, 6, (n_tokens,), generator=generator)
    on = torch.zeros(n_tokens, 8, dtype=torch.bool)
    for child, (parent, of, rest) in enumerate(
        [(0, 2, 0), (0, 2, 1), (1, 3, 0), (1, 3, 1), (1, 3, 2)]
    ):
        on[:, child] = fires[:, parent] & (which % of == rest)
    on[:, 5] = fires[:, 2]
    on[:, 6] = ~fires[:, 3] & (torch.rand(n_tokens, generator=generator) < 0.1)
    on[:, 7] = torch.rand(n_tokens, generator=generator) < 0.1
    codes = [SparseCodes.from_dense(one.float()) for one in (fires, on)]
    return narrow, wide, *codes


def test_planted_splits_partition_their_parent_and_chance_gives_none():
    found = splitting(*split_dictionaries())
    edges = [(0, 0), (0, 1), (1, 2), (1, 3), (1, 4), (2, 5)]
    assert [tuple(edge) for edge in found.children.tolist()] == edges
    assert [(split.parent, split.children) for split in found.splits] == [
        (1, (2, 3, 4)),
        (0, (0, 1)),
    ]
    for split in found.splits:
        assert split.covered == 1
        assert split.overlap == 0
    assert found.n_null == 0
    assert found.absorbed.tolist() == [[3, 6]]
    assert found.orphans == 2  # 6, which is active where 3 is not, and 7, which is like nothing
    assert bool((found.given == 1).all())


def test_flipping_signs_changes_no_family_of_a_signed_dictionary():
    narrow, wide, one, other = split_dictionaries()
    flips = torch.tensor([1.0, -1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    flipped = SparseCodes.from_dense(other.dense() * flips)
    found = splitting(narrow, flips[:, None] * wide, one, flipped, signed=True)
    same = splitting(narrow, wide, one, other, signed=True)
    assert torch.equal(found.children, same.children)
    assert found.splits == same.splits
    assert torch.equal(found.absorbed, same.absorbed)


def test_children_that_overlap_and_leave_gaps_say_so():
    axes = orthonormal(8)
    wide = torch.nn.functional.normalize(axes[:1] + 0.4 * axes[1:3], dim=1)
    parent = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]).float()[:, None]
    on = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]).float().T
    found = splitting(axes[:1], wide, SparseCodes.from_dense(parent), SparseCodes.from_dense(on))
    # Tokens 0 to 2 of 4 are covered; each child shares one of its two tokens.
    assert found.splits[0].covered == 0.75
    assert found.splits[0].overlap == 0.5


def test_codes_and_directions_that_do_not_belong_together_are_refused():
    narrow, wide, one, other = split_dictionaries(50)
    with pytest.raises(ShapeError, match="codes of 8 and 4 latents"):
        splitting(narrow, wide, other, one)
    with pytest.raises(ConfigError, match=r"absent_bar=0\.7"):
        splitting(narrow, wide, one, other, absent_bar=0.7)
    with pytest.raises(ShapeError, match="50 and of 49 tokens"):
        splitting(narrow, wide, one, other[:49])


def planted_tree(n_tokens=4000, absorb=False):
    """3 roots, 2 children each, 2 grandchildren each; a child implies its parent."""
    generator = torch.Generator().manual_seed(8)
    parent = [-1] * 3 + [0, 0, 1, 1, 2, 2] + [3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]
    axes = orthonormal(24)
    directions, rate = torch.zeros(21, 24), torch.zeros(n_tokens, 21, dtype=torch.bool)
    for latent, above in enumerate(parent):
        chance = torch.rand(n_tokens, generator=generator)
        if above < 0:
            directions[latent] = axes[latent]
            rate[:, latent] = chance < 0.2
        else:
            directions[latent] = torch.nn.functional.normalize(
                axes[latent] + directions[above], dim=0
            )
            rate[:, latent] = rate[:, above] & (chance < 0.4)
    if absorb:  # a plain dictionary: the parent is silent where a child fires
        for latent in range(20, 2, -1):
            rate[:, parent[latent]] &= ~rate[:, latent]
    return directions, SparseCodes.from_dense(rate.float()), torch.tensor(parent)


def test_a_planted_tree_of_three_levels_is_recovered():
    directions, codes, parent = planted_tree()
    found = latent_tree(directions, codes, [3, 9, 21])
    assert torch.equal(found.parent, parent)
    assert found.depth.tolist() == [0] * 3 + [1] * 6 + [2] * 12
    assert found.level.tolist() == found.depth.tolist()
    assert found.orphan_rate == 0
    assert found.orphan_rate_null > 0.9
    assert found.candidates == 18
    assert found.to_json()["parent"] == parent.tolist()


def test_children_that_absorb_their_parents_hang_from_a_grandparent_or_nowhere():
    directions, codes, parent = planted_tree(absorb=True)
    found = latent_tree(directions, codes, [3, 9, 21])
    assert bool((found.parent[3:9] == -1).all())
    assert torch.equal(found.parent[9:], parent[parent[9:]])
    assert found.orphan_rate == pytest.approx(6 / 18)


def test_a_latent_that_is_always_on_is_nobodys_parent():
    directions, codes, parent = planted_tree()
    always = torch.cat([torch.ones(len(codes), 1), codes.dense()], 1)
    shared = torch.cat([directions.mean(0, keepdim=True), directions])
    found = latent_tree(shared, SparseCodes.from_dense(always), [4, 10, 22])
    assert not bool((found.parent == 0).any())
    assert torch.equal(found.parent[1:], torch.where(parent < 0, -1, parent + 1))


def test_prefixes_must_ascend_to_the_whole_dictionary():
    directions, codes, _ = planted_tree(100)
    for prefixes in ([9, 3, 21], [3, 9], [21], [0, 21]):
        with pytest.raises(ConfigError, match="must ascend from 1 or more to 21"):
            latent_tree(directions, codes, prefixes)
