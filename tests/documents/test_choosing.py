"""Clusters along chosen concepts, texts for a task, and latents of one kind of instruction."""

from typing import Any

import numpy as np
import pytest
import torch

from saelab.documents import (
    DocumentCodes,
    category_ends,
    cluster_documents,
    jaccard,
    overlap,
    select_for_task,
)
from saelab.errors import ConfigError, DataError
from saelab.sparse_codes import SparseCodes
from tests.documents.planted import documents, signed_tokens, turned

TASKS = torch.arange(200) % 5


def _tasks(n: int = 200, seed: int = 0) -> DocumentCodes:
    """Five tasks with eight latents of their own each, and ten of all."""
    chances = torch.full((n, 50), 0.02)
    for task in range(5):
        chances[TASKS[:n] == task, 8 * task : 8 * task + 8] = 0.9
    chances[:, 40:] = 0.2
    return documents(chances, seed=seed)


def test_clusters_follow_the_chosen_concepts_and_no_others() -> None:
    generator = torch.Generator().manual_seed(0)
    tone, subject = (torch.rand(300, generator=generator) < 0.5 for _ in range(2))
    chances = torch.full((300, 8), 0.05)
    chances[:, 0] = chances[:, 1] = torch.where(tone, 0.9, 0.03)
    chances[:, 2] = chances[:, 3] = torch.where(tone, 0.03, 0.9)
    chances[:, 4] = chances[:, 5] = torch.where(subject, 0.95, 0.02)
    whole = documents(chances)
    found = cluster_documents(whole, [(i, 1) for i in range(4)], 2)
    inside = found.labels >= 0
    agree = (found.labels[inside] == 0) == tone[inside]
    assert max(float(agree.float().mean()), 1 - float(agree.float().mean())) > 0.93
    assert found.silhouette.excess > 0.1
    assert {latent for latent, _, _ in found.profiles[0][:2]} in ({0, 1}, {2, 3})
    assert sum(found.sizes) == int(inside.sum()) and found.sizes[0] >= found.sizes[1]
    none = ~(whole.pooled("peak").dense()[:, :4] > 0).any(1)
    assert torch.equal(none, ~inside)
    by_subject = cluster_documents(whole, [(4, 1), (5, 1)], 2).labels
    assert abs(float((by_subject[inside] == found.labels[inside]).float().mean()) - 0.5) < 0.5


def test_columns_without_clusters_look_like_shuffled_ones() -> None:
    found = cluster_documents(
        documents(torch.full((300, 6), 0.3)), [(i, 1) for i in range(6)], 3, draws=5
    )
    assert abs(found.silhouette.excess) < 0.05


def test_a_clustering_that_cannot_be_is_refused() -> None:
    whole = documents(torch.full((30, 6), 0.3))
    with pytest.raises(ConfigError, match="two ends"):
        cluster_documents(whole, [(1, 1), (1, 1)], 2)
    with pytest.raises(DataError, match="too few for 2"):
        cluster_documents(documents(torch.zeros(30, 6)), [(1, 1), (2, 1)], 2)


def test_jaccard_by_hand_and_its_bounds() -> None:
    x = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    row = np.array([2.0, 1.0, 0.0])
    assert jaccard(SparseCodes.from_dense(x), row).tolist() == [0.5, 0.0, 0.0]
    assert jaccard(SparseCodes.from_dense(x[:1]), x[0].double().numpy()).tolist() == [1.0]
    with pytest.raises(DataError, match="at least 0"):
        jaccard(SparseCodes.from_dense(-x), row)


@pytest.mark.parametrize("prototype", ["mean", "nearest"])
def test_the_texts_of_a_task_are_chosen(prototype: str) -> None:
    pool, exemplars = _tasks(), _tasks(seed=9).rows((TASKS == 2).nonzero().squeeze(1)[:5])
    found = select_for_task(pool, exemplars, 40, prototype=prototype)  # type: ignore[arg-type]
    assert (TASKS[found.documents] == 2).all()  # there are 40 of it
    assert found.likeness > found.pool_likeness
    assert torch.equal(found.similarity[found.documents], found.similarity.sort(descending=True)
                       .values[:40])  # fmt: skip


def test_an_exemplar_is_wholly_similar_to_itself() -> None:
    pool = _tasks()
    found = select_for_task(pool, pool.rows(torch.tensor([17])), 1)
    assert found.documents.tolist() == [17]
    assert found.similarity[17] == pytest.approx(1.0)


def test_the_scale_of_a_latent_does_not_change_the_choice() -> None:
    codes, document = signed_tokens(n_tokens=240), torch.arange(80).repeat_interleave(3)
    scale = torch.ones(7)
    scale[3] = 100.0
    chosen = []
    for factor in (torch.ones(7), scale):
        scaled = SparseCodes(codes.offsets, codes.indices, codes.values * factor[codes.indices], 7)
        whole = DocumentCodes.of_tokens(scaled, document, signed=True)
        chosen.append(select_for_task(whole, whole.rows(torch.arange(4)), 20).similarity)
    assert torch.allclose(chosen[0], chosen[1], atol=1e-5)
    turned_around = DocumentCodes.of_tokens(turned(codes, [1, 3]), document, signed=True)
    again = select_for_task(turned_around, turned_around.rows(torch.arange(4)), 20)
    assert torch.allclose(again.similarity, chosen[0], atol=1e-5)


def test_diversity_takes_fewer_copies() -> None:
    pool = _tasks(40)
    from saelab.documents import cat

    copied = cat([pool] * 4)
    exemplars = pool.rows(torch.tensor([2, 7]))
    plain = select_for_task(copied, exemplars, 12)
    diverse = select_for_task(copied, exemplars, 12, diversity=0.5)
    assert diverse.likeness < plain.likeness - 0.1
    assert len(diverse.documents.unique()) == 12
    with pytest.raises(ConfigError, match="diversity"):
        select_for_task(pool, exemplars, 5, diversity=1.0)


def _instructions() -> tuple[DocumentCodes, list[str]]:
    """Twelve instructions of four tokens: latents 0-1 in code, 2 in maths, 3 in all, 4 in two."""
    x = torch.zeros(12, 4, 6)
    kinds = ["code", "maths", "talk"] * 4
    for i, kind in enumerate(kinds):
        x[i, :2, 3] = 1.0
        if kind == "code":
            x[i, :3, :2] = 1.0
        if kind == "maths":
            x[i, 1:4, 2] = 1.0
        if kind != "talk":
            x[i, :2, 4] = 1.0
        if i == 0:
            x[i, :, 5] = 1.0  # one instruction's own
    document = torch.arange(12).repeat_interleave(4)
    codes = SparseCodes.from_dense(x.reshape(48, 6))
    return DocumentCodes.of_tokens(codes, document, signed=False), kinds


def test_planted_latents_of_categories_are_recovered() -> None:
    whole, kinds = _instructions()
    found = category_ends(whole, kinds, threshold=0.5)
    assert found.ends["code"] == {(0, 1), (1, 1), (3, 1), (4, 1)}
    assert found.unique == {
        "code": {(0, 1), (1, 1)}, "maths": {(2, 1)}, "talk": frozenset(),
    }  # fmt: skip
    assert found.general == {(3, 1)} and found.generality == 1 / 5
    assert sum(found.null_unique.values()) < 0.5
    assert overlap(found.ends["code"], found.ends["maths"]) == 2 / 5


def test_a_higher_bar_never_adds_latents() -> None:
    whole, kinds = _instructions()
    for axis in ("threshold", "coverage"):
        bars: list[dict[str, Any]] = [{axis: bar} for bar in (0.2, 0.6, 1.0)]
        found = [category_ends(whole, kinds, draws=0, **bar) for bar in bars]
        for kind in ("code", "maths", "talk"):
            sets = [one.ends[kind] for one in found]
            assert sets[0] >= sets[1] >= sets[2]
    assert (5, 1) in category_ends(whole, kinds, coverage=0.2).ends["code"]
    with pytest.raises(ConfigError, match="threshold=0"):
        category_ends(whole, kinds, threshold=0.0)
    with pytest.raises(DataError, match="at least two kinds"):
        category_ends(whole, ["code"] * 12)
