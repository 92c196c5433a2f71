"""Push, hold or remove latents while a model runs, and measure what that did and what it cost.

    with saelab.steer(model, sae, {123: 8.0}):        # h + 8 W_dec[123], everywhere but the BOS
        model.generate(prompt)
    with saelab.clamp(model, sae, {123: 5.0}): ...    # latent 123 is 5 wherever it is read
    with saelab.ablate(model, sae, [123]): ...        # latent 123 is 0
    with saelab.splice(model, sae): ...               # the reconstruction in place of h

What the dictionary does not explain, h - recons, stays in place in all but `splice`, so pushing
with strength 0 changes nothing at all. The model is restored when the block ends, however it ends.

Any other direction is pushed along in the same way, and all are measured by the same ruler:

    apart = difference_in_means(model, hook, happy_texts, sad_texts)
    with intervene(model, [PushAlong(apart, 0.5)]): ...
    report = measure_steering(
        model, [latent_direction(sae, 123), apart],
        prompts=prompts, concept=["joy", "happy"], held_out=other_texts, sae=sae,
    )
    report.save_html("steering.html")                 # cost against effect, controls included
"""

from saelab.steering.active import Positions, ablate, clamp, intervene, scale, splice, steer
from saelab.steering.code_descent import DescendCode, DescentConfig, Prototypes, prototypes
from saelab.steering.code_push import PushCode
from saelab.steering.concepts import Concept, Continuation, Detector, Scorer, Words, word_tokens
from saelab.steering.contrasts import (
    activation_addition,
    difference_in_means,
    principal_direction,
    probe_direction,
)
from saelab.steering.directions import (
    Direction,
    latent_direction,
    random_direction,
    random_latents,
)
from saelab.steering.forcing import ForceCodes
from saelab.steering.interventions import Clamp, Intervention, Push, PushAlong, Scale, Splice
from saelab.steering.learned import LearnConfig, Learned, Preference, learn_push
from saelab.steering.measuring import SteeringConfig, mean_norm, measure_steering
from saelab.steering.output_scores import OutputScores, latents_for_words, output_scores
from saelab.steering.recipes import load_interventions, save_interventions
from saelab.steering.results import Chosen, Curve, Measured, PromptOutcome, SteeringReport
from saelab.steering.side_by_side import NextToken, SideBySide, side_by_side

__all__ = [
    "Chosen",
    "Clamp",
    "Concept",
    "Continuation",
    "Curve",
    "DescendCode",
    "DescentConfig",
    "Detector",
    "Direction",
    "ForceCodes",
    "Intervention",
    "LearnConfig",
    "Learned",
    "Measured",
    "NextToken",
    "OutputScores",
    "Positions",
    "Preference",
    "PromptOutcome",
    "Prototypes",
    "Push",
    "PushAlong",
    "PushCode",
    "Scale",
    "Scorer",
    "SideBySide",
    "Splice",
    "SteeringConfig",
    "SteeringReport",
    "Words",
    "ablate",
    "activation_addition",
    "clamp",
    "difference_in_means",
    "intervene",
    "latent_direction",
    "latents_for_words",
    "learn_push",
    "load_interventions",
    "mean_norm",
    "measure_steering",
    "output_scores",
    "principal_direction",
    "probe_direction",
    "prototypes",
    "random_direction",
    "random_latents",
    "save_interventions",
    "scale",
    "side_by_side",
    "splice",
    "steer",
    "word_tokens",
]
