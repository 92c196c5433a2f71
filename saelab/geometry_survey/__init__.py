"""What is the geometry of one trained dictionary? Measured once, kept in its run folder, drawn.

    survey = survey_run("runs/topk")            # or: saelab geometry runs/topk
    survey = GeometrySurvey.open("runs/topk/geometry")

Lobes, crystals, families and the galaxy of `saelab.geometry`, each number beside its null, in a
folder of less than a megabyte that the explorer's page opens.
"""

from saelab.geometry_survey.config import SurveyConfig
from saelab.geometry_survey.families import SplitFamily, TreeFamily
from saelab.geometry_survey.lobes import Lobe, LobeLevel
from saelab.geometry_survey.running import survey_run
from saelab.geometry_survey.saved import GeometrySurvey
from saelab.geometry_survey.words import Relation, WordCrystals, word_crystals

__all__ = [
    "GeometrySurvey",
    "Lobe",
    "LobeLevel",
    "Relation",
    "SplitFamily",
    "SurveyConfig",
    "TreeFamily",
    "WordCrystals",
    "survey_run",
    "word_crystals",
]
