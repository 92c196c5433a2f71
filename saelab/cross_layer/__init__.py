"""Cross-layer transcoders: latents that read one layer's MLP and write to it and all later ones."""

from saelab.cross_layer.training import CrossLayerTrainer, train_cross_layer
from saelab.cross_layer.transcoder import Chosen, CrossLayerTranscoder

__all__ = ["Chosen", "CrossLayerTrainer", "CrossLayerTranscoder", "train_cross_layer"]
