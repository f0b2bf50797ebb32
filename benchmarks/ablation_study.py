"""The ablation study of docs/ablations.md: every variant at tiny scale, three seeds, unattended.

    python -m benchmarks.ablation_study                        all runs, one after the other
    python -m benchmarks.ablation_study launch=srun            the same, each behind a launcher
    python -m benchmarks.ablation_study report=tables          tables of what is finished
    python -m benchmarks.ablation_study sheet=FILE.jpg         pictures of the first seed
    python -m benchmarks.ablation_study job=zerosft_s0 part=trained     one run in this process
    python -m benchmarks.ablation_study steps=1200 names=zerosft,data_1   some trainings, longer

A run is one training and the evaluations of its checkpoint, each in a run folder that
`python -m src.ablation` reads. Finished runs are skipped, so a stopped study can be continued.
"""

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image, ImageDraw

from open_supir.base.run_folders import write_config
from open_supir.commands.evaluate import evaluate
from open_supir.commands.train import train
from open_supir.evaluation.compare import bootstrap_interval
from open_supir.evaluation.means import format_value, metric_title
from open_supir.evaluation.records import read_records
from open_supir.reports.tables import markdown_table

ROOT = Path(__file__).parents[1]
FOLDER = Path("runs/study")  # of STEPS; longer trainings have a folder of their own
STEPS = 300
SEEDS = (0, 1, 2)
COMMON = (
    "experiment=zerosft", "data.val_size=33",
    "data.prepare_at=data/shards/study", "+data.prepare.shard_size=5",  # so that 1 % exists
    "weights.robust_encoder=shipped:supir_tiny.safetensors",
)  # fmt: skip
TRAINED = {  # in order of interest, should the study be stopped
    "zerosft": (),
    "residual": ("connector=residual",),
    "clean_encoder": ("weights.robust_encoder=clean",),
    "no_negatives": ("data.sources.negative=null",),
    "data_10": ("data.fraction=0.1",),
    "data_1": ("data.fraction=0.01",),
    "cross_attention": ("connector=cross_attention",),
    "zerosft_cross": ("connector=zerosft_released",),
}
LATER = ("cross_attention", "zerosft_cross")  # after all seeds of the others
# The default's pull toward the cleaned image and its share of the input hide what stage 2 does.
EVALUATED = (
    "metrics=weightless", "captioner=file", "protocol.repeats=1", "sampler=tiny",
    "sampler.tau=null", "options.strength=1",
)  # fmt: skip
TAUS = (0.05, 0.5, 1, 4)
NO_POSITIVE, NO_NEGATIVE = "options.positive_prompt=''", "options.negative_prompt=''"
STRONG = "sampler.cfg_scale=4"  # prompts act by guidance; the default has none
VARIANTS = {  # evaluations of one checkpoint, beside the default
    "zerosft": {
        **{f"tau_{tau}": (f"sampler.tau={tau}",) for tau in TAUS},
        "control_off": ("++sampler.control_scale=0",),
        "cfg4": (STRONG,),
        "cfg4_no_positive": (STRONG, NO_POSITIVE),
        "cfg4_no_negative": (STRONG, NO_NEGATIVE),
        "cfg4_no_words": (STRONG, NO_POSITIVE, NO_NEGATIVE),
    },
    "no_negatives": {"cfg4": (STRONG,)},
}


def evaluations(job: str, part: str) -> dict[str, tuple[str, ...]]:
    """Return the run folders of a job's evaluations, and what each changes."""
    if part == "trained":
        return {job: ()}
    name, _, seed = job.rpartition("_s")
    found = {f"{job}_{v}": changes for v, changes in VARIANTS.get(name, {}).items()}
    if seed != "0":  # without control the prior alone is left, which no seed changed
        found.pop(f"{job}_control_off", None)
    return found


def run(job: str, part: str) -> None:
    """Train one run and evaluate it; skip what is already done."""
    name, _, seed = job.rpartition("_s")
    folder = FOLDER / job
    changes = (*COMMON, *TRAINED[name], f"seed={seed}", f"run_dir={folder}", f"name={name}")
    changes += (f"max_steps={STEPS}", f"val_every={STEPS}")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        trained = compose("train", list(changes))
        if not (folder / "summary.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut off
            train(trained)
        for target, options in evaluations(job, part).items():
            if (FOLDER / target / "eval" / "report.html").is_file():
                continue
            cfg = compose(
                "evaluate",
                [
                    *EVALUATED,
                    *options,
                    f"checkpoint={checkpoint}",
                    f"output={FOLDER / target}/eval",
                ],
            )
            if target != job:
                own = OmegaConf.to_container(cfg, resolve=True)
                plain = OmegaConf.to_container(trained, resolve=True)
                both = OmegaConf.merge(plain, {"evaluation": own})
                write_config(FOLDER / target, both)  # type: ignore[arg-type]
            evaluate(cfg)


def order(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (job, part), seed by seed: trainings, then variants; LATER after all seeds.

    With `names`, only these trainings.
    """
    if names:
        yield from ((f"{name}_s{seed}", "trained") for seed in SEEDS for name in names)
        return
    for seed in SEEDS:
        own = [name for name in TRAINED if name not in LATER]
        yield from ((f"{name}_s{seed}", part) for part in ("trained", "variants") for name in own)
    yield from ((f"{name}_s{seed}", "trained") for seed in SEEDS for name in LATER)


def main(launch: list[str], names: list[str]) -> int:
    """Run what is not done yet, each in its own process; return how many failed."""
    failed = 0
    for job, part in order(names):
        if all((FOLDER / t / "eval" / "report.html").is_file() for t in evaluations(job, part)):
            continue
        command = [
            *launch,
            sys.executable,
            "-m",
            "benchmarks.ablation_study",
            f"job={job}",
            f"part={part}",
            f"steps={STEPS}",
        ]
        failed += subprocess.run(command, cwd=ROOT).returncode != 0
    return failed


FAMILIES = {  # rows of each table: title -> (job, variant); differences are from the first
    "Fusion": {
        "ZeroSFT": ("zerosft", ""),
        "zero convolution": ("residual", ""),
        "cross-attention": ("cross_attention", ""),
        "ZeroSFT, two cross-attentions": ("zerosft_cross", ""),
        "no control": ("zerosft", "_control_off"),
    },
    "Data scale": {
        "100 % of the shards": ("zerosft", ""),
        "10 %": ("data_10", ""),
        "1 %": ("data_1", ""),
    },
    "Negative samples and words (guidance 4)": {
        "with samples, both words": ("zerosft", "_cfg4"),
        "with samples, positive words": ("zerosft", "_cfg4_no_negative"),
        "with samples, negative words": ("zerosft", "_cfg4_no_positive"),
        "with samples, no words": ("zerosft", "_cfg4_no_words"),
        "without samples, both words": ("no_negatives", "_cfg4"),
    },
    "Negative samples (no guidance)": {
        "with negative samples": ("zerosft", ""),
        "without negative samples": ("no_negatives", ""),
    },
    "Degradation-robust encoder": {
        "robust encoder": ("zerosft", ""),
        "ordinary encoder": ("clean_encoder", ""),
    },
    "Restoration guidance": {
        "no guidance": ("zerosft", ""),
        **{f"tau {tau}": ("zerosft", f"_tau_{tau}") for tau in reversed(TAUS)},
    },
}
COLUMNS = ("psnr", "fsim", "gmsd", "sharpness")


def scores(name: str, variant: str, metric: str) -> dict[int, dict[str, float]]:
    """Return seed -> image -> value of the restored images, for finished runs."""
    found = {}
    for seed in SEEDS:
        path = FOLDER / f"{name}_s{seed}{variant}" / "eval" / "records.jsonl"
        if path.is_file():
            rows = [r for r in read_records(path) if r["method"] == "restored"]
            rows = [r for r in rows if r["metric"] == metric and r["value"] is not None]
            found[seed] = {r["image"]: float(r["value"] or 0) for r in rows}
    return found


def cell(
    own: dict[int, dict[str, float]], base: dict[int, dict[str, float]], metric: str
) -> tuple[str, str]:
    """Return the mean over images and seeds with its spread, and the paired difference."""
    by_seed = [fmean(images.values()) for images in own.values()]
    text = format_value(fmean(by_seed), metric)
    if len(by_seed) > 1:
        text += f" ± {format_value(stdev(by_seed), metric)}"
    shared = [seed for seed in own if seed in base]
    if own is base or not shared:
        return text, ""
    images = [
        fmean(own[seed][name] - base[seed][name] for seed in shared) for name in own[shared[0]]
    ]
    numbers = (fmean(images), *bootstrap_interval(images))
    change, low, high = (format_value(value, metric, signed=True) for value in numbers)
    return text, f"{change} [{low}, {high}]"


def report() -> str:
    """Return the tables of all families, as Markdown, from the existing records."""
    parts = []
    for family, variants in FAMILIES.items():
        first = next(iter(variants.values()))
        rows = []
        for title, (name, variant) in variants.items():
            seeds = scores(name, variant, COLUMNS[0])
            if not seeds:  # not run
                continue
            cells = []
            for metric in COLUMNS:
                base = scores(*first, metric)
                own = base if (name, variant) == first else scores(name, variant, metric)
                cells.append(cell(own, base, metric))
            values, differences = zip(*cells, strict=True)
            rows.append([title, str(len(seeds)), *values])
            if any(differences):
                rows.append(["- difference", "", *differences])
        header = ["", "seeds", *map(metric_title, COLUMNS)]
        if len(rows) < 2:
            continue
        parts.append(f"### {family}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


SHOWN = (
    "chelsea-05",
    "coffee-04",
    "rocket-01",
    "rocket-08",
)  # by place, not picked
COLUMN, HEAD = 168, 18  # pixels


def sheet(path: Path) -> None:
    """Draw the restored images of seed 0, one column per finished variant."""
    base = FOLDER / "zerosft_s0" / "eval" / "images"
    columns = {"LQ": base / "lq", "HQ": base / "hq"}
    for variants in FAMILIES.values():
        for title, (name, variant) in variants.items():
            folder = FOLDER / f"{name}_s0{variant}" / "eval" / "images" / "restored"
            if folder.is_dir() and folder not in columns.values():
                columns[title] = folder
    page = Image.new("RGB", (COLUMN * len(columns), (COLUMN + 2) * len(SHOWN) + HEAD), "white")
    draw, size = ImageDraw.Draw(page), (COLUMN - 2, COLUMN - 2)
    for x, (title, folder) in enumerate(columns.items()):
        draw.text((COLUMN * x + 4, 3), title[:27], fill="black")
        for y, name in enumerate(SHOWN):
            with Image.open(folder / f"{name}.png") as picture:
                large = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
            page.paste(large, (COLUMN * x, HEAD + (COLUMN + 2) * y))
    page.save(path, quality=88)


if __name__ == "__main__":
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if int(arguments.get("steps", STEPS)) != STEPS:
        STEPS = int(arguments["steps"])
        FOLDER = FOLDER.with_name(f"study_{STEPS}")
    if "report" in arguments:
        print(report())
    elif "sheet" in arguments:
        sheet(Path(arguments["sheet"]))
    elif "job" in arguments:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        run(arguments["job"], arguments["part"])
    else:
        names = arguments.get("names", "")
        sys.exit(main(arguments.get("launch", "").split(), names.split(",") if names else []) > 0)
