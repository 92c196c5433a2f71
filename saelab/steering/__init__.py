"""Push, hold or remove latents while a model runs, and measure what that did and what it cost.

    with saelab.steer(model, sae, {123: 8.0}):        # h + 8 W_dec[123], everywhere but the BOS
        model.generate(prompt)
    with saelab.clamp(model, sae, {123: 5.0}): ...    # latent 123 is 5 wherever it is read
    with saelab.ablate(model, sae, [123]): ...        # latent 123 is 0
    with saelab.splice(model, sae): ...               # the reconstruction in place of h

What the dictionary does not explain, h - recons, stays in place in all but `splice`, so pushing
with strength 0 changes nothing at all. The model is restored when the block ends, however it ends.
"""

from saelab.steering.active import ablate, clamp, intervene, scale, splice, steer
from saelab.steering.interventions import (
    Clamp,
    Intervention,
    Push,
    Scale,
    Splice,
    load_interventions,
    save_interventions,
)

__all__ = [
    "Clamp",
    "Intervention",
    "Push",
    "Scale",
    "Splice",
    "ablate",
    "clamp",
    "intervene",
    "load_interventions",
    "save_interventions",
    "scale",
    "splice",
    "steer",
]
