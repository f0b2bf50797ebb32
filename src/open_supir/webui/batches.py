"""Actions of the batch tab: images with captions in, a ZIP of the same tree out."""

import json
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]

from open_supir.inference.batch import FILE_ERRORS
from open_supir.inference.folder import Job, plan_jobs
from open_supir.inference.options import RestoreOptions
from open_supir.inference.records import encode_all
from open_supir.inference.result import Restoration
from open_supir.webui.handlers import Handlers, Updates, failures, refuse, said
from open_supir.webui.studio import Cancelled, Studio
from open_supir.webui.uploads import UploadedFolder, lay_out
from open_supir.webui.words import duration, time_left


class BatchHandlers:
    """The batch tab's actions; beginning, cancelling and options are those of the page."""

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers

    @property
    def studio(self) -> Studio:
        """What the page works with."""
        return self.handlers.studio

    def take(self, files: Sequence[str] | None) -> Updates:
        """Lay new uploads out; list their images with the captions found beside them."""
        if not files:
            return {"batch": None, "captions": [], "status": ""}
        try:
            batch = self._laid_out(files)
        except FILE_ERRORS as error:
            return {"batch": None, "captions": [], "status": said(error)}
        names = [batch.name(path) for path in batch.paths]
        status = "; ".join([f"{len(names)} image{'s' * (len(names) > 1)}", *batch.notes])
        rows = [[name, batch.captions[name]] for name in names]
        return {"batch": batch, "captions": rows, "status": status}

    def restore_many(
        self, request: gr.Request, files: Sequence[str] | None, batch: UploadedFolder | None,
        preset: str, *values: Any,
    ) -> Iterator[Updates]:  # fmt: skip
        """Restore a batch; yield progress, then an archive and each file's outcome.

        The last of `values` is the table of captions; the others are the dials'.
        """
        *dials, captions = values
        cancel = self.handlers.cancels[request.session_hash]
        failure: list[str] = []
        with failures(failure):
            if not files:
                raise ValueError("choose images, or a ZIP of a folder, first")
            options = self.handlers.options(preset, dials)
            batch = batch if batch and batch.files == tuple(files) else self._laid_out(files)
            folder = Path(tempfile.mkdtemp(dir=self.studio.folder))
            jobs = plan_jobs(batch.paths, batch.root, folder, options)
            said_of = batch.captioned(captions or [])
            rows: list[list[str]] = []
            clock = time.monotonic()
            with zipfile.ZipFile(folder / "restored.zip", "w") as archive:
                for number, job in enumerate(jobs):
                    each = (time.monotonic() - clock) / number if number else 0
                    left = f", {time_left(each * (len(jobs) - number))}" if number else ""
                    status = f"restoring {job.name}, {number + 1} of {len(jobs)}{left}"
                    yield {"status": status, "report": rows}
                    try:
                        caption = said_of.get(batch.name(job.source), "")
                        self._pack(archive, folder, job, caption, options, cancel)
                    except Cancelled:
                        rows += [[later.name, "cancelled"] for later in jobs[number:]]
                        break
                    except FILE_ERRORS as error:
                        rows.append([job.name, said(error)])
                    else:
                        rows.append([job.name, "restored"])
            done = sum(row[1] == "restored" for row in rows)
            status = f"done, {done} of {len(jobs)} restored, {duration(time.monotonic() - clock)}"
            if cancel.is_set():
                status = f"cancelled, {done} of {len(jobs)} restored"
            packed = str(folder / "restored.zip") if done else None
            yield {"packed": packed, "report": rows, "status": status}
        if failure:
            yield {"status": failure[0]}
            refuse(failure[0])

    def _laid_out(self, files: Sequence[str]) -> UploadedFolder:
        return lay_out(
            files,
            Path(tempfile.mkdtemp(dir=self.studio.folder)),
            max_files=self.studio.max_files,
            max_bytes=self.studio.max_batch_bytes,
        )

    def _pack(
        self,
        archive: zipfile.ZipFile,
        folder: Path,
        job: Job,
        caption: str,
        options: RestoreOptions,
        cancel: threading.Event,
    ) -> None:
        """Restore a file into the archive, with its record beside it."""
        photo = self.studio.read(str(job.source), options)
        *_, result = self.studio.run(photo, caption, options, cancel, job.mask)
        assert isinstance(result, Restoration)
        record = self.studio.describe_result(photo, result, job.name, job.mask)
        for target, content in encode_all(photo, result, job.targets, record=record).items():
            archive.writestr(target.relative_to(folder).as_posix(), content)
        archive.writestr(job.record.relative_to(folder).as_posix(), json.dumps(record))
