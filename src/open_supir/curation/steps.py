"""The steps whose work is a module of its own, imported when a worker opens the step."""

from open_supir.curation.step_settings import (
    CaptionSettings,
    FilterSettings,
    NegativeSettings,
    ScoreSettings,
)
from open_supir.curation.work import Process


class FilterStep(FilterSettings):
    """Normalises candidates, cuts them to the stored size, and measures them."""

    name = "filter"

    def open(self) -> Process:
        """Return the work."""
        from open_supir.curation.filters import Filter

        return Filter(self)


class ScoreStep(ScoreSettings):
    """Scores the images that pass the thresholds so far."""

    name = "score"

    def open(self) -> Process:
        """Return the work, with the metrics loaded."""
        from open_supir.curation.score import Score

        return Score(self)


class CaptionStep(CaptionSettings):
    """Captions the kept images."""

    name = "caption"

    def open(self) -> Process:
        """Return the work, with the captioner loaded."""
        from open_supir.curation.caption import Caption

        return Caption(self)


class NegativeStep(NegativeSettings):
    """Makes negative samples from positives."""

    name = "negatives"

    def open(self) -> Process:
        """Return the work, with the prior loaded."""
        from open_supir.curation.negatives import Negatives

        return Negatives(self)
