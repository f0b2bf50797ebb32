"""Fit a preset to photographs of one's own: input=FOLDER output=FILE.yaml.

No clean versions are needed. Writes the preset and beside it FILE.html: ranges with their
uncertainty, distances before and after, crops side by side. conf/degradation/NAME.yaml of a
checkout is used as degradation=NAME, FOLDER/degradation/NAME.yaml with --config-dir FOLDER as well.
"""

import logging
from pathlib import Path
from textwrap import wrap

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from open_supir.base.cli import command, require
from open_supir.base.files import check_writable, write_together
from open_supir.base.images import list_images
from open_supir.base.images.inputs import find_photos
from open_supir.base.results import KEPT
from open_supir.data.demo import clean_photos
from open_supir.degradation.fit import UNTOLD, compare, fit_ranges
from open_supir.degradation.fit_crops import CleanPictures, read_photographs
from open_supir.evaluation.fit_report import fit_page

log = logging.getLogger(__name__)


@command("fit_degradation")
def main(cfg: DictConfig) -> None:
    """Run the command line."""
    require(cfg, "input", "output")
    output = Path(cfg.output)
    page = output.with_suffix(".html")
    if output.suffix != ".yaml":
        raise ValueError(f"output={output}: a preset's file ends in .yaml, e.g. mine.yaml")
    for path in (output, page):
        if path.exists() and not cfg.overwrite:
            raise FileExistsError(f"{path} exists; {KEPT}")
    check_writable(output.parent)
    settings, sizes = instantiate(cfg.fit), {"side": cfg.side, "max_pixels": cfg.max_pixels}
    found = find_photos(Path(cfg.input), output)
    for problem in found.problems:
        log.warning("%s", problem)
    photographs = read_photographs(found.paths, seed=settings.seed, **sizes)
    clean = CleanPictures(clean_photos() if cfg.clean is None else list_images(cfg.clean), **sizes)
    fit = fit_ranges(photographs, clean, settings)
    log.info("4/4: distances")
    before = instantiate(cfg.degradation, _convert_="all").config
    name = HydraConfig.get().runtime.choices["degradation"]
    comparisons = {
        title: compare(config, photographs, clean, settings)
        for title, config in ((name, before), (f"{output.stem}, fitted", fit.ranges.config()))
    }
    count = len(photographs.crops)
    comments = [f"Fitted to {count} photographs by src.fit_degradation; see {page.name}."]
    if fit.untold:
        said = f"{', '.join(fit.untold)}: {UNTOLD} from these photographs"
        comments += wrap(f"{said}; the values are guesses, see their intervals.", 98)
        log.warning("%s; see the intervals in %s", said, page)
    text = fit_page(photographs, fit, comparisons, title=output.stem)
    preset = fit.ranges.preset(comments)
    write_together({page: text.encode(), output: preset.encode()})
    means = [c.distance.mean() for c in comparisons.values()]
    log.info("%s: distance %.2f (%s: %.2f); see %s", output, means[1], name, means[0], page)


if __name__ == "__main__":
    main()
