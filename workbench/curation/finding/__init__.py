"""Finding: which frames of a pool are worth a look, and by which signal.

scores = finding.score(pool, labelled, conditions)      # unlike what is labelled
likeness = finding.like(pool, [Exemplar(frame, box)])   # like this one
likeness = finding.text(pool, encoder, "a deer")        # what the words say
"""

from workbench.curation.finding.disagreement import Disagreement, disagreement
from workbench.curation.finding.exemplars import Exemplar, Likeness, like, text
from workbench.curation.finding.ranks import fuse
from workbench.curation.finding.rarity import SIGNALS, WEIGHTS, Scores, score
from workbench.curation.finding.typicality import typicality

__all__ = [
    "SIGNALS",
    "WEIGHTS",
    "Disagreement",
    "Exemplar",
    "Likeness",
    "Scores",
    "disagreement",
    "fuse",
    "like",
    "score",
    "text",
    "typicality",
]
