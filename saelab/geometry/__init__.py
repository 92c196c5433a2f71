"""How are a dictionary's directions arranged, and what does the arrangement mean? Beside nulls.

    crystals     are differences of one relation parallel?   crystals, function_vectors, parallels
    lobes        do latents that occur together lie together?   affinities, clustering, lobes
    galaxy       what shape is the cloud of directions?   galaxy, clouds
    coherence    how orthogonal, and does a latent read where it writes?   orthogonality
    matching     which latents of two dictionaries are one?   matching, correlations, stitching
    families     what splits, what is absorbed, what nests?   splitting, trees
    errors       what is missed, on which tokens, since which layer?   error_anatomy, error_origins

Every result holds the number, the same number under a null, and the excess of one over the other
(`AgainstNull`). A z-score alone says how much data there was.
"""

from saelab.geometry.affinities import (
    AFFINITIES,
    Affinity,
    AffinityKind,
    ChunkCounts,
    affinity,
    chunks_of,
)
from saelab.geometry.clouds import (
    clustering_entropy,
    matched_gaussian,
    nearest_neighbor_entropy,
)
from saelab.geometry.clustering import angular_clusters, spectral_clusters
from saelab.geometry.correlations import correlations
from saelab.geometry.crystals import (
    ParallelDifferences,
    RelationSeparation,
    parallel_differences,
    separate_relations,
)
from saelab.geometry.error_anatomy import DarkMatter, dark_matter
from saelab.geometry.error_origins import ErrorScaling, cross_layer_prediction, error_scaling
from saelab.geometry.function_vectors import FunctionVectors, function_vectors
from saelab.geometry.galaxy import (
    Galaxy,
    PowerLaw,
    galaxy,
    oriented,
    power_law,
)
from saelab.geometry.lobes import (
    LobeTest,
    agreement,
    dominant_lobes,
    lobe_prediction,
    spatial_modularity,
)
from saelab.geometry.matching import (
    MMCS,
    Matching,
    match,
    match_by,
    mmcs,
    neighbors,
)
from saelab.geometry.nulls import AgainstNull
from saelab.geometry.orthogonality import (
    Alignment,
    Coherence,
    alignment,
    coherence,
    matched_support,
)
from saelab.geometry.parallels import DifferenceClasses, difference_classes
from saelab.geometry.splitting import Split, SplittingGraph, splitting
from saelab.geometry.stitching import Stitching, stitch
from saelab.geometry.trees import LatentTree, latent_tree

__all__ = [
    "AFFINITIES",
    "MMCS",
    "Affinity",
    "AffinityKind",
    "AgainstNull",
    "Alignment",
    "ChunkCounts",
    "Coherence",
    "DarkMatter",
    "DifferenceClasses",
    "ErrorScaling",
    "FunctionVectors",
    "Galaxy",
    "LatentTree",
    "LobeTest",
    "Matching",
    "ParallelDifferences",
    "PowerLaw",
    "RelationSeparation",
    "Split",
    "SplittingGraph",
    "Stitching",
    "affinity",
    "agreement",
    "alignment",
    "angular_clusters",
    "chunks_of",
    "clustering_entropy",
    "coherence",
    "correlations",
    "cross_layer_prediction",
    "dark_matter",
    "difference_classes",
    "dominant_lobes",
    "error_scaling",
    "function_vectors",
    "galaxy",
    "latent_tree",
    "lobe_prediction",
    "match",
    "match_by",
    "matched_gaussian",
    "matched_support",
    "mmcs",
    "nearest_neighbor_entropy",
    "neighbors",
    "oriented",
    "parallel_differences",
    "power_law",
    "separate_relations",
    "spatial_modularity",
    "spectral_clusters",
    "splitting",
    "stitch",
]
