"""Steps whose code is in modules of their own, which a worker imports when it opens the step."""

from open_supir.curation.step_settings import (
    CaptionSettings,
    FilterSettings,
    NegativeSettings,
    ScoreSettings,
)
from open_supir.curation.work import Process


class FilterStep(FilterSettings):
    """Normalises candidates, crops them to the stored size and measures them."""

    name = "filter"

    def open(self) -> Process:
        """Return the function that processes a unit."""
        from open_supir.curation.filters import Filter

        return Filter(self)


class ScoreStep(ScoreSettings):
    """Scores the images that pass the thresholds so far."""

    name = "score"

    def open(self) -> Process:
        """Load the metrics; return the function that processes a unit."""
        from open_supir.curation.score import Scoring

        return Scoring(self)


class CaptionStep(CaptionSettings):
    """Captions the kept images."""

    name = "caption"

    def open(self) -> Process:
        """Load the captioner; return the function that processes a unit."""
        from open_supir.curation.caption import Captioning

        return Captioning(self)


class NegativeStep(NegativeSettings):
    """Makes negative samples from positives."""

    name = "negatives"

    def open(self) -> Process:
        """Load the prior; return the function that processes a unit."""
        from open_supir.curation.negatives import Negatives

        return Negatives(self)
