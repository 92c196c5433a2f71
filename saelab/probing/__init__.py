"""What do activations, neurons and latents hold, and how much would nothing hold?

    data = load_data_set("glue_sst2").sample(600)
    found = read_examples(model, data.texts, [sae.hook], "mean", sae=sae)
    positive = data.positive[found.rows]
    report = sparse_probe(found.latents, positive, k=4, division=divide(positive))
    report.test.auroc, report.interval, report.controls     # a number never comes alone

    probes         design, pooling, splitting, measures, linear, ranking, optimal, sparse_probing
    labeled text   data_sets, examples, first_letter
    dictionaries   absorption, concept_removal (TPP, SCR), interchange (RAVEL), unlearning
    units          firings, roles (dead, token, n-gram, positional), activation_sparsity (PPL-p%)

What is chosen is chosen on training rows, groups are never torn, and whatever is said of a signed
latent is the same when it is turned around.
"""

from saelab.probing.ablated_texts import PooledTexts, pooled_texts
from saelab.probing.absorption import Absorption, AbsorptionConfig, measure_absorption
from saelab.probing.activation_sparsity import MlpLayer, SparsityProfile, sparsity_profile
from saelab.probing.concept_removal import spurious_removal, targeted_perturbation
from saelab.probing.data_sets import (
    LabeledTexts,
    data_set_names,
    load_data_set,
    read_labeled_csv,
)
from saelab.probing.design import Design
from saelab.probing.examples import Examples, read_examples
from saelab.probing.firings import Firings
from saelab.probing.first_letter import first_letter_activations, first_letter_words
from saelab.probing.interchange import (
    Interchange,
    InterchangeConfig,
    Pairs,
    learn_mask,
    measure_mask,
)
from saelab.probing.linear import LinearProbe, fit_probe
from saelab.probing.measures import Interval, Scores, auroc, bootstrap_interval, score
from saelab.probing.optimal import BestSupport, best_support
from saelab.probing.pooling import Pooling, pool, pool_codes, two_halves
from saelab.probing.ranking import adaptive_thresholding, mean_difference
from saelab.probing.roles import RoleConfig, Roles, UnitRole, find_roles
from saelab.probing.saved_roles import SavedRoles, load_roles, save_roles
from saelab.probing.sparse_probing import (
    Controls,
    Method,
    ProbeConfig,
    ProbeReport,
    choose_columns,
    sparse_probe,
)
from saelab.probing.splitting import Division, divide, group_numbers
from saelab.probing.unlearning import Unlearning, UnlearningConfig, forgetting, measure_unlearning

__all__ = [
    "Absorption",
    "AbsorptionConfig",
    "BestSupport",
    "Controls",
    "Design",
    "Division",
    "Examples",
    "Firings",
    "Interchange",
    "InterchangeConfig",
    "Interval",
    "LabeledTexts",
    "LinearProbe",
    "Method",
    "MlpLayer",
    "Pairs",
    "PooledTexts",
    "Pooling",
    "ProbeConfig",
    "ProbeReport",
    "RoleConfig",
    "Roles",
    "SavedRoles",
    "Scores",
    "SparsityProfile",
    "UnitRole",
    "Unlearning",
    "UnlearningConfig",
    "adaptive_thresholding",
    "auroc",
    "best_support",
    "bootstrap_interval",
    "choose_columns",
    "data_set_names",
    "divide",
    "find_roles",
    "first_letter_activations",
    "first_letter_words",
    "fit_probe",
    "forgetting",
    "group_numbers",
    "learn_mask",
    "load_data_set",
    "load_roles",
    "mean_difference",
    "measure_absorption",
    "measure_mask",
    "measure_unlearning",
    "pool",
    "pool_codes",
    "pooled_texts",
    "read_examples",
    "read_labeled_csv",
    "save_roles",
    "score",
    "sparse_probe",
    "sparsity_profile",
    "spurious_removal",
    "targeted_perturbation",
    "two_halves",
]
