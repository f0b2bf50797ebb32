"""One picture of an evaluation: rows are images, columns are LQ, the methods and the reference."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from open_supir.base.files import replacing
from open_supir.evaluation.benchmark import REFERENCE_FOLDER, picture_path
from open_supir.evaluation.records import WHOLE_SET, Record

WIDTH = 192  # smaller pictures are enlarged by a whole factor, pixel by pixel; in pixels
GAP = 6
TITLE = 24  # height of the column titles
MOST_ROWS = 6  # images, spread evenly over all


def write_sheet(records: Sequence[Record], folder: Path) -> Path | None:
    """Write folder/sheet.png from the pictures saved below folder/images.

    Args:
        records: Name the images and the methods.
        folder: Output folder of the evaluation.

    Returns:
        The file, or None if no image has the pictures of all methods.
    """
    methods = list(dict.fromkeys(r["method"] for r in records if r["image"] != WHOLE_SET))
    images = list(dict.fromkeys(r["image"] for r in records if r["image"] != WHOLE_SET))
    columns = [*methods, REFERENCE_FOLDER]
    lines = []
    for name in images:
        paths = [picture_path(folder / "images", column, name) for column in columns]
        if all(path.is_file() for path in paths):
            lines.append(paths)
    if not lines:
        return None
    rows = min(MOST_ROWS, len(lines))
    chosen = [lines[index * len(lines) // rows] for index in range(rows)]
    pictures = [[_enlarged(path) for path in paths] for paths in chosen]
    widths = [max(row[c].width for row in pictures) for c in range(len(columns))]
    heights = [max(picture.height for picture in row) for row in pictures]
    size = (sum(widths) + GAP * (len(widths) + 1), TITLE + sum(heights) + GAP * (len(heights) + 1))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    left = GAP
    for column, width, title in zip(range(len(columns)), widths, columns, strict=True):
        draw.text((left, GAP), title.replace("_", " "), fill="black", font=font)
        top = TITLE + GAP
        for row, height in zip(pictures, heights, strict=True):
            sheet.paste(row[column], (left, top))
            top += height + GAP
        left += width + GAP
    path = folder / "sheet.png"
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def _enlarged(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        factor = max(1, round(WIDTH / picture.width))
        size = (picture.width * factor, picture.height * factor)
        return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
