"""The atlas: what every latent of a dictionary does, in tables that open in a second.

atlas = saelab.build_atlas(sae, model, tokens, "runs/topk/atlas")   # or saelab.Atlas.open(...)
atlas.latents(where="density < 0.01", order_by="strongest DESC", limit=20)
card = atlas.latent(123)                                            # everything a page shows
atlas.search("war")
atlas.sql("SELECT latent, text FROM labels WHERE kind = 'bigram' ORDER BY score DESC LIMIT 9")
atlas.annotate(123, label="talk of war", starred=True)
"""

from saelab.atlas.annotations import Annotations
from saelab.atlas.building import build_atlas
from saelab.atlas.cards import LatentCard, TailCard
from saelab.atlas.comparing import Comparison
from saelab.atlas.config import AtlasConfig
from saelab.atlas.decoder_map import MapConfig, make_map
from saelab.atlas.endpoint import Endpoint
from saelab.atlas.explaining import ExplainConfig, explain, explain_cost
from saelab.atlas.loss_effects import measure_loss_effects
from saelab.atlas.neuronpedia import FeaturePanel, load_batches
from saelab.atlas.opened import Atlas
from saelab.atlas.records import (
    Annotation,
    Cooccurring,
    Example,
    Histogram,
    Interval,
    Label,
    Neighbor,
    ProfileEntry,
    SearchHit,
    TokenEffect,
)
from saelab.atlas.schemas import TABLES

__all__ = [
    "TABLES",
    "Annotation",
    "Annotations",
    "Atlas",
    "AtlasConfig",
    "Comparison",
    "Cooccurring",
    "Endpoint",
    "Example",
    "ExplainConfig",
    "FeaturePanel",
    "Histogram",
    "Interval",
    "Label",
    "LatentCard",
    "MapConfig",
    "Neighbor",
    "ProfileEntry",
    "SearchHit",
    "TailCard",
    "TokenEffect",
    "build_atlas",
    "explain",
    "explain_cost",
    "load_batches",
    "make_map",
    "measure_loss_effects",
]
