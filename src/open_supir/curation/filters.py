"""The work of the filter: decode strictly, normalise once, cut to the stored size, measure.

Only images that cannot be stored are refused here. Scores go into a table, to which thresholds are
applied later (see selection.py).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from open_supir.base.images.jpeg_quality import jpeg_quality
from open_supir.base.images.read import read_pixels
from open_supir.curation.jpeg_files import strip_metadata
from open_supir.curation.measures import measure, perceptual_hash
from open_supir.curation.reading import Candidate, read_candidates
from open_supir.curation.sources import file_digest, utf8_of
from open_supir.curation.step_settings import FilterSettings
from open_supir.curation.tables import write_rows
from open_supir.curation.thresholds import MEASURES
from open_supir.curation.work import Unit
from open_supir.data.captions import fit_storage
from open_supir.data.jpeg_rows import encode_jpeg
from open_supir.data.samples import ImageLimits, SampleError
from open_supir.data.shards import StoredSample, write_shard

ROWS = pa.schema(
    [(n, pa.string()) for n in ("key", "path", "source", "licence", "caption", "reason", "detail")]
    + [(n, pa.int32()) for n in ("original_height", "original_width", "height", "width", "bytes")]
    + [("normalised", pa.list_(pa.string())), ("tile", pa.string()), ("digest", pa.string())]
    + [("phash", pa.uint64())]
    + [(n, pa.float32()) for n in MEASURES]
)  # fmt: skip
Row = dict[str, Any]


class Decoded(NamedTuple):
    """An image as upright 8-bit sRGB, and what was changed to get there."""

    picture: Image.Image
    original_size: tuple[int, int]  # (h, w) of the file, upright
    normalised: list[str]
    quality: float | None  # of a JPEG
    plain: bytes | None  # the JPEG file without metadata, if it needs no other change


class Filter:
    """Processes the units of the filter: fills a folder with a tar and `rows.parquet`."""

    def __init__(self, settings: FilterSettings) -> None:
        self.settings = settings
        self.limits = ImageLimits(
            min_side=settings.min_side, max_side=1 << 20, max_pixels=settings.max_pixels
        )
        Image.MAX_IMAGE_PIXELS = None  # the header is checked against `max_pixels` instead

    def __call__(self, unit: Unit, folder: Path) -> Mapping[str, Any]:
        """Filter one unit; return counts by reason and the tar's manifest entry."""
        rows: list[Row] = []
        entry = write_shard(folder / f"{unit.name}.tar", self._stored(unit, rows))
        write_rows(folder / "rows.parquet", rows, ROWS)
        refused = Counter(row["reason"] for row in rows if row.get("reason"))
        return {"rows": len(rows), "refused": dict(refused), "shard": asdict(entry)}

    def _stored(self, unit: Unit, rows: list[Row]) -> Iterator[StoredSample]:
        """Yield what is stored; adds a row for every image, stored or not."""
        for candidate in read_candidates(unit, keep_keys=self.settings.keep_keys):
            row = {n: getattr(candidate, n) for n in ("key", "path", "source", "licence")}
            row["caption"] = candidate.caption
            try:
                if candidate.error is not None:
                    raise candidate.error
                decoded = decode(candidate.data, self.limits)
                pieces = list(self._pieces(candidate, decoded, row))
            except SampleError as error:
                detail = utf8_of(error.detail)  # it may name a file
                rows.append(row | {"reason": error.reason, "detail": detail})
                continue
            for sample, piece in pieces:
                rows.append(piece)
                yield sample

    def _pieces(
        self, candidate: Candidate, decoded: Decoded, row: Row
    ) -> Iterator[tuple[StoredSample, Row]]:
        """Yield the samples made from an image, each with its row."""
        height, width = decoded.original_size
        for tile, picture in self.settings.fit(decoded.picture):
            key = f"{candidate.key}-{tile}" if tile else candidate.key
            changed = picture is not decoded.picture
            pixels = np.asarray(picture)
            data = None if changed else decoded.plain
            if data is None:
                data = encode_jpeg(pixels, quality=self.settings.quality)
            piece = row | {
                "key": key,
                "original_height": height,
                "original_width": width,
                "height": picture.height,
                "width": picture.width,
                "bytes": len(data),
                "normalised": decoded.normalised,
                "tile": tile,
                "digest": file_digest(data),
                "phash": perceptual_hash(picture),
                "aspect": max(height, width) / min(height, width),
                "jpeg_quality": decoded.quality,
                **measure(pixels),
            }
            meta = self._meta(candidate, piece)
            try:
                caption = fit_storage(row["caption"] or "")
                sample = StoredSample(key=key, image=data, caption=caption, meta=meta)
                sample.members()
            except ValueError as error:
                raise SampleError("cannot be stored", str(error)) from error
            yield sample, piece

    def _meta(self, candidate: Candidate, piece: Row) -> dict[str, Any]:
        if not self.settings.record:
            return candidate.meta
        kept = {k: v for k, v in candidate.meta.items() if k in KEPT_META}
        return kept | {
            "source": piece["source"],
            "licence": piece["licence"],
            "original_size": [piece["original_height"], piece["original_width"]],
            "normalised": piece["normalised"],
            **({"tile": piece["tile"]} if piece["tile"] else {}),
        }


# Metadata kept from a tar's samples: origin, and what the loader reads
KEPT_META = ("url", "captions", "caption_short", "is_negative", "content")


def decode(data: bytes, limits: ImageLimits) -> Decoded:
    """Decode an image file of any mode to upright 8-bit sRGB without alpha.

    The header is checked first. Of files with several pages or camera previews (MPO), the first
    picture is used.

    Raises:
        SampleError: The file is refused or damaged.
    """
    try:
        image = read_pixels(data, limits.check, strict=True)
        tables = image.jpeg_tables
        quality = jpeg_quality(tables) if tables else None
    except SampleError:
        raise
    except ValueError as error:
        raise SampleError("damaged image", str(error)) from error
    if image.is_animated:
        raise SampleError("animation")
    is_plain = tables and not image.normalised and data[:3] == b"\xff\xd8\xff"
    picture = Image.fromarray(np.ascontiguousarray(image.over_white()))
    return Decoded(
        picture=picture,
        original_size=(picture.height, picture.width),
        normalised=image.normalised,
        quality=quality,
        plain=strip_metadata(data) if is_plain else None,
    )
