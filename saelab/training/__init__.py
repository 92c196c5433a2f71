"""Train one dictionary: a loop for every family, exact gradients, exact resume.

trainer        the loop
config         its settings
inputs         batches, and what a store must offer
gradients      the loss, and exact gradients over the selected pairs
updates        projection, clipping, Adam, unit norms
optimizers     Adam on persistent gradients; the learning rate's course
upkeep         what a family does between steps; resampling, group_bias, selection_gap
initialization where decoder and encoder start; active_subspace
firing         which latents are dead
runs, state    the run folder and what a checkpoint holds; checkpoints, run_logs, result, watch
latent_shards  one dictionary over several processes
"""

from saelab.training.config import TrainConfig
from saelab.training.result import Progress, TrainResult
from saelab.training.trainer import Trainer, train

__all__ = ["Progress", "TrainConfig", "TrainResult", "Trainer", "train"]
