"""How does saelab see a language model? One small interface, whatever is behind it.

load_model()  ->  LanguageModel (protocol.py)
                    ├── TorchModel    transformers models and any torch module, hooked directly
                    └── BridgeModel   a TransformerLens bridge
"""

from saelab.models.identity import ModelIdentity
from saelab.models.loading import load_model, sensible_device, sensible_dtype
from saelab.models.protocol import Edit, LanguageModel, PositionEdit

__all__ = [
    "Edit",
    "LanguageModel",
    "ModelIdentity",
    "PositionEdit",
    "load_model",
    "sensible_device",
    "sensible_dtype",
]
