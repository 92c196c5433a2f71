"""Can an embedding be sparse, and what is gained? Heads that turn dense embeddings into latents.

result = train_sparse_head(embeddings, SparseHeadConfig(k=8))                      # CSR
result = train_sparse_head(embeddings, SparseHeadConfig(k=8, first_k=64), labels=labels)  # CSRv2
codes = unit_codes(codes_at(result.sae, embeddings, 8))
InvertedIndex.of(codes).search(codes[:1], 10)          # saelab.documents

embedders      dense embeddings of texts
heads          the tied TopK autoencoder, codes at any k
contrast       three losses over a batch of codes
training       the loss, annealing of k, dead latents
measuring      nearest neighbors, and the dense baselines: truncation, PCA, a labeled prefix map
"""

from saelab.embeddings.contrast import label_contrast, pairing, repulsion
from saelab.embeddings.embedders import SentenceEmbedder, embedder_folder
from saelab.embeddings.heads import codes_at, sparse_head, unit_codes
from saelab.embeddings.measuring import (
    Neighbors,
    bytes_of,
    dense_neighbors,
    pca,
    prefix_map,
    sparse_neighbors,
    truncated,
)
from saelab.embeddings.training import (
    SparseHeadConfig,
    SparseHeadResult,
    head_loss,
    train_sparse_head,
)

__all__ = [
    "Neighbors",
    "SentenceEmbedder",
    "SparseHeadConfig",
    "SparseHeadResult",
    "bytes_of",
    "codes_at",
    "dense_neighbors",
    "embedder_folder",
    "head_loss",
    "label_contrast",
    "pairing",
    "pca",
    "prefix_map",
    "repulsion",
    "sparse_head",
    "sparse_neighbors",
    "train_sparse_head",
    "truncated",
    "unit_codes",
]
