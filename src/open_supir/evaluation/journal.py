"""Saved progress of a benchmark, from which an interrupted or repeated one resumes."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from open_supir.evaluation.provenance import InputFacts, read_inputs, write_inputs
from open_supir.evaluation.records import Record, read_records, write_records

SAVE_SECONDS = 60.0

Values = Mapping[tuple[str, str, str], float | None]  # (image, method, metric) -> value


class Journal:
    """records.jsonl and inputs.jsonl of a folder: reads earlier values and saves new ones."""

    def __init__(
        self, folder: Path, *, run: str, settings: Mapping[str, Mapping[str, Any]], resume: bool
    ) -> None:
        """Read the values of the same run with the same settings; discard all others.

        Args:
            settings: Method -> what its values depend on.
            resume: Use earlier values; otherwise discard all of them.
        """
        self._folder, self._path = folder, folder / "records.jsonl"
        self._old: list[Record] = []
        if self._path.is_file():
            if resume:
                self._old = [
                    record
                    for record in read_records(self._path)
                    if record["value"] is not None
                    and record["run"] == run
                    and record["settings"] == settings.get(record["method"])
                ]
            write_records(self._old, self._path)  # no stale values beside this run's pictures
        self._inputs = read_inputs(folder) if self._old else {}
        self._values = {(r["image"], r["method"], r["metric"]): r["value"] for r in self._old}
        self._saved = time.monotonic()

    def values_of_image(self, facts: InputFacts | None) -> Values:
        """Return the earlier values if the image's input is unchanged, else {}."""
        same = facts is not None and self._inputs.get(facts["image"]) == facts
        return self._values if same else {}

    def values_of_set(
        self, method: str, measured: set[str], inputs: Mapping[str, InputFacts]
    ) -> Values:
        """Return the earlier values if the set has no new or changed picture, else {}.

        Args:
            measured: Images that now have a value for this method.
        """
        before = {image for image, name, _ in self._values if name == method}
        same = self._inputs == inputs and measured <= before
        return self._values if same else {}

    def save(self, records: Sequence[Record], inputs: Mapping[str, InputFacts]) -> None:
        """Write the finished benchmark."""
        write_inputs(inputs.values(), self._folder)
        write_records(records, self._path)

    def save_sometimes(self, records: Sequence[Record], inputs: Mapping[str, InputFacts]) -> None:
        """Save progress, at most every SAVE_SECONDS.

        Earlier values of images not reached yet are kept, so that an interruption loses nothing.
        """
        if time.monotonic() - self._saved <= SAVE_SECONDS:
            return
        done = {record["image"] for record in records} | set(inputs)
        later = [record for record in self._old if record["image"] not in done]
        self.save([*records, *later], {**self._inputs, **inputs})
        self._saved = time.monotonic()
