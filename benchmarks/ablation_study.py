"""The ablation study of docs/ablations.md: every variant at tiny scale, by three seeds, unattended.

    python benchmarks/ablation_study.py                        all runs, one after the other
    python benchmarks/ablation_study.py launch=srun            the same, each behind a launcher
    python benchmarks/ablation_study.py job=zerosft_s0 part=trained     one run in this process

A run is one training and the evaluations of its checkpoint, each in a run folder that
`python -m src.ablation` reads. Finished runs are skipped, so a study that was stopped goes on.
"""

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
FOLDER = Path("runs/study")
SEEDS = (0, 1, 2)
COMMON = (
    "experiment=zerosft", "max_steps=300", "val_every=300", "data.val_size=33",
    "data.root=data/shards/study", "+data.prepare.shard_size=5",  # 1 % of the shards exists then
    "weights.robust_encoder=data/demo/robust_encoder.safetensors",
)  # fmt: skip
TRAINED = {  # in order of interest, should the study be stopped
    "zerosft": (),
    "residual": ("connector=residual",),
    "clean_encoder": ("weights.robust_encoder=clean",),
    "no_negatives": ("data.sources.negatives=null",),
    "data_10": ("data.fraction=0.1",),
    "data_1": ("data.fraction=0.01",),
    "cross_attention": ("connector=cross_attention",),
    "zerosft_cross": ("connector=zerosft_released",),
}
LATER = ("cross_attention", "zerosft_cross")  # after all seeds of the others
EVALUATED = ("metrics=weightless", "captioner=file", "protocol.repeats=1", "sampler=tiny")
NO_POSITIVE, NO_NEGATIVE = "options.positive_prompt=''", "options.negative_prompt=''"
STRONG = "sampler.cfg_scale=4"  # prompts act by guidance; the default 1.2 hardly guides
VARIANTS = {  # evaluations of one checkpoint, beside the default
    "zerosft": {
        "tau_none": ("sampler.tau=null",),
        **{f"tau_{tau}": (f"sampler.tau={tau}",) for tau in (1, 2, 4, 6)},
        "control_off": ("sampler.control_scale=0",),
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
    """Train one run and evaluate it; what is done already is left alone."""
    from src.evaluate import evaluate
    from src.runs import write_config
    from src.train import train

    name, _, seed = job.rpartition("_s")
    folder = FOLDER / job
    changes = (*COMMON, *TRAINED[name], f"seed={seed}", f"run_dir={folder}", f"name={name}")
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
                write_config(FOLDER / target, OmegaConf.merge(plain, {"evaluation": own}))
            evaluate(cfg)


def order() -> Iterator[tuple[str, str]]:
    """Yield (job, part), seed by seed: trainings, then variants; LATER after all seeds."""
    for seed in SEEDS:
        own = [name for name in TRAINED if name not in LATER]
        yield from ((f"{name}_s{seed}", part) for part in ("trained", "variants") for name in own)
    yield from ((f"{name}_s{seed}", "trained") for seed in SEEDS for name in LATER)


def main(launch: list[str]) -> int:
    """Run what is not done yet, each in a process of its own; returns how many failed."""
    failed = 0
    for job, part in order():
        if all((FOLDER / t / "eval" / "report.html").is_file() for t in evaluations(job, part)):
            continue
        command = [*launch, sys.executable, __file__, f"job={job}", f"part={part}"]
        failed += subprocess.run(command, cwd=ROOT).returncode != 0
    return failed


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "job" in arguments:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        run(arguments["job"], arguments["part"])
    else:
        sys.exit(main(arguments.get("launch", "").split()) > 0)
