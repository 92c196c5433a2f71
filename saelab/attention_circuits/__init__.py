"""What do heads move, from where, and for which latents? Patterns held, nothing patched.

direct       DFA: a read-out as a sum over heads and source positions, and the rest
recursive    the same again upstream, as a graph whose sums close
contrasts    why a head looks at one key rather than others, term by term
roles        what each head does for an attention dictionary, over a corpus
"""

from saelab.attention_circuits.contrasts import attention_contrast
from saelab.attention_circuits.direct import DirectAttribution, DirectTerms, Source
from saelab.attention_circuits.recursive import RecursiveConfig, recursive_graph
from saelab.attention_circuits.roles import (
    KINDS,
    HeadRole,
    decoder_shares,
    head_roles,
    source_kinds,
)

__all__ = [
    "KINDS",
    "DirectAttribution",
    "DirectTerms",
    "HeadRole",
    "RecursiveConfig",
    "Source",
    "attention_contrast",
    "decoder_shares",
    "head_roles",
    "recursive_graph",
    "source_kinds",
]
