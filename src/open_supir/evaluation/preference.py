"""A blinded preference study: people choose the better of two pictures.

`write_study` makes preference.html, a single file that needs no network and names no method, and
key.json, which maps pictures to methods. A rater's votes stay in the browser until saved as
votes_*.json; once these are in the study's folder, `win_rates` turns them into a table.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from open_supir.base.files import write_text
from open_supir.base.images import list_images
from open_supir.reports.document import render
from open_supir.reports.pictures import embed
from open_supir.reports.tables import csv_table, markdown_table

PAGE, KEY = "preference.html", "key.json"
PICTURE_BYTES = 1_500_000  # if one picture is larger, all are shown as JPEG


@dataclass(frozen=True, kw_only=True)
class Question:
    """Two methods' pictures of one image; `again` is the number of the question it repeats."""

    image: str
    left: str
    right: str
    again: int | None = None


class Vote(NamedTuple):
    """One rater's answer to a question: "left", "right" or "tie"."""

    rater: str
    question: int
    answer: str


def run_study(folder: Path, preference: Mapping[str, Any]) -> str:
    """Create the study if `folder` has none, else report the votes in it.

    Args:
        preference: folders, lq, pairs, repeats and seed, as described in conf/evaluate.yaml.

    Raises:
        ValueError: There are fewer than two folders of pictures, or the study already exists and
            folders are given.
    """
    folders = {str(name): Path(path) for name, path in (preference["folders"] or {}).items()}
    if not (folder / KEY).is_file():
        lq = preference["lq"]
        questions = write_study(
            folder, folders, lq=Path(lq) if lq else None, pairs=preference["pairs"],
            repeats=preference["repeats"], seed=preference["seed"],
        )  # fmt: skip
        return (
            f"{len(questions)} questions: open {folder / PAGE}, save the votes in {folder}, then "
            f"run the same command with only study={folder}"
        )
    if folders:
        raise ValueError(f"study={folder} exists; omit preference.folders to read its votes")
    return win_rates(folder)


def draw_questions(
    images: Sequence[str], methods: Sequence[str], *, pairs: int, repeats: int, seed: int
) -> list[Question]:
    """Draw the questions: every pair of methods equally often, in random order and on random sides.

    Args:
        methods: Two or more.
        pairs: Number of questions without repeats; fewer if there are not enough images.
        repeats: Questions asked again at the end, with sides swapped.
    """
    rng = np.random.default_rng(seed)
    orders = [
        [(*pair, images[i]) for i in rng.permutation(len(images))]
        for pair in itertools.combinations(methods, 2)
    ]
    chosen = list(itertools.chain.from_iterable(zip(*orders, strict=True)))[:pairs]
    flips = rng.permutation(len(chosen)) % 2  # both sides equally often
    asked = [
        Question(image=image, left=b if flip else a, right=a if flip else b)
        for (a, b, image), flip in zip(chosen, flips, strict=True)
    ]
    asked = [asked[i] for i in rng.permutation(len(asked))]
    again = rng.permutation(len(asked))[: min(repeats, len(asked))]
    return asked + [
        Question(image=asked[i].image, left=asked[i].right, right=asked[i].left, again=int(i))
        for i in again
    ]


def write_study(
    folder: Path,
    folders: Mapping[str, Path],
    *,
    lq: Path | None,
    pairs: int,
    repeats: int,
    seed: int,
) -> list[Question]:
    """Write the page and its key, and return the questions.

    Raises:
        ValueError: Fewer than two folders, no image common to all, or `pairs` or `repeats` out of
            range.
        FileNotFoundError: A folder does not exist.
    """
    if len(folders) < 2:
        raise ValueError("a study needs two or more folders: preference.folders={a: DIR, b: DIR}")
    if pairs < 1 or repeats < 0:
        raise ValueError(f"preference needs pairs >= 1 and repeats >= 0, got {pairs} and {repeats}")
    found = {name: _pictures(path) for name, path in folders.items()}
    shown = {} if lq is None else _pictures(lq)
    images = sorted(set.intersection(*(set(pictures) for pictures in found.values())))
    if not images:
        raise ValueError(f"no image is in all of {', '.join(map(str, folders.values()))}")
    questions = draw_questions(images, list(folders), pairs=pairs, repeats=repeats, seed=seed)
    key = {"questions": [asdict(q) for q in questions]}
    study = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    files: dict[Path, int] = {}
    rows = []
    for q in questions:
        pair = [found[q.left][q.image], found[q.right][q.image]]
        row = [files.setdefault(path, len(files)) for path in pair]
        if q.image in shown:
            row.append(files.setdefault(shown[q.image], len(files)))
        rows.append(row)
    large = any(path.stat().st_size > PICTURE_BYTES for path in files)
    pictures = [embed(path, PICTURE_BYTES, alike=large) for path in files]
    page = render("preference.html", study=study, questions=rows, pictures=pictures)
    write_text(folder / PAGE, page)
    write_text(folder / KEY, json.dumps({"study": study, **key}, indent=1) + "\n")
    return questions


def read_votes(folder: Path) -> tuple[list[Question], list[Vote]]:
    """Read the key and every votes_*.json; a rater's last answer to a question counts.

    Raises:
        ValueError: A file belongs to another study or is damaged; the message names it.
    """
    key = json.loads((folder / KEY).read_text(encoding="utf-8"))
    questions = [Question(**row) for row in key["questions"]]
    votes: dict[tuple[str, int], Vote] = {}
    for path in sorted(folder.glob("votes*.json")):
        try:
            sheet = json.loads(path.read_text(encoding="utf-8"))
            study, rater = sheet["study"], str(sheet["rater"])
            answers = {int(number): str(answer) for number, answer in sheet["answers"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not a file of votes ({error})") from None
        if study != key["study"]:
            raise ValueError(f"{path}: votes of study {study}, expected {key['study']}")
        for number, answer in answers.items():
            if not 0 <= number < len(questions) or answer not in ("left", "right", "tie"):
                raise ValueError(f"{path}: question {number} has invalid answer {answer!r}")
            votes[rater, number] = Vote(rater, number, answer)
    return questions, list(votes.values())


def win_rates(folder: Path) -> str:
    """Write results.md and results.csv from the votes, and return the Markdown.

    A win rate is wins / (wins + losses), with the 95 % Wilson interval and the p value of a
    two-sided binomial test against 1/2. Repeated questions only measure raters' self-agreement.

    Raises:
        FileNotFoundError: There are no votes yet.
    """
    questions, votes = read_votes(folder)
    if not votes:
        raise FileNotFoundError(f"no votes_*.json in {folder} yet; open {folder / PAGE} first")
    first = [vote for vote in votes if questions[vote.question].again is None]
    wins: Counter[tuple[str, str]] = Counter()
    ties: Counter[frozenset[str]] = Counter()
    for vote in first:
        q = questions[vote.question]
        sides = (q.left, q.right) if vote.answer == "left" else (q.right, q.left)
        if vote.answer == "tie":
            ties[frozenset(sides)] += 1
        else:
            wins[sides] += 1
    methods = sorted({name for q in questions for name in (q.left, q.right)})
    rows = [
        _rate(f"{a} over {b}", wins[a, b], wins[b, a], ties[frozenset((a, b))])
        for a, b in itertools.combinations(methods, 2)
    ]
    if len(methods) > 2:
        rows += [
            _rate(
                f"{a} over all",
                sum(wins[a, b] for b in methods),
                sum(wins[b, a] for b in methods),
                sum(count for pair, count in ties.items() if a in pair),
            )
            for a in methods
        ]
    header = ["", "wins", "losses", "ties", "win rate", "low", "high", "p"]
    text = "\n\n".join([markdown_table(header, rows), *_remarks(questions, votes, first)]) + "\n"
    write_text(folder / "results.md", text)
    write_text(folder / "results.csv", csv_table(["comparison", *header[1:]], rows))
    return text


def _rate(name: str, won: int, lost: int, tied: int) -> list[str]:
    counts = [name, str(won), str(lost), str(tied)]
    if won + lost == 0:
        return [*counts, "n/a", "n/a", "n/a", "n/a"]
    from scipy.stats import binomtest  # takes a second

    test = binomtest(won, won + lost)
    low, high = test.proportion_ci(method="wilson")
    rate = won / (won + lost)
    return [*counts, f"{rate:.3f}", f"{low:.3f}", f"{high:.3f}", f"{test.pvalue:.4f}"]


def _remarks(
    questions: Sequence[Question], votes: Sequence[Vote], first: Sequence[Vote]
) -> Iterator[str]:
    raters = {vote.rater for vote in votes}
    yield (
        f"{len(first)} votes of {len(raters)} raters. low, high: 95 % Wilson interval over votes; "
        "votes on one image or by one rater are not independent, so true intervals are wider."
    )
    decided = [vote for vote in first if vote.answer != "tie"]
    left = sum(vote.answer == "left" for vote in decided)
    if decided:
        yield f"The left picture was chosen in {left} of {len(decided)} votes."
    answers = {(vote.rater, vote.question): vote.answer for vote in votes}
    swapped = {"left": "right", "right": "left", "tie": "tie"}
    repeated = [
        answers[vote.rater, earlier] == swapped[vote.answer]
        for vote in votes
        if (earlier := questions[vote.question].again) is not None
        and (vote.rater, earlier) in answers
    ]
    if repeated:
        yield (
            "When asked again with sides swapped, raters gave the same answer in "
            f"{sum(repeated)} of {len(repeated)} questions."
        )


def _pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"preference.folders: no folder {folder}")
    return {p.relative_to(folder).with_suffix("").as_posix(): p for p in list_images(folder)}
