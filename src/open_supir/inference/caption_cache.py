"""Captions kept on disk, by image, model and question: asked once, whatever else changes."""

import hashlib
import json
from pathlib import Path

from torch import Tensor

from open_supir.base.files import remove_leftovers, write_text
from open_supir.base.images import to_uint8
from open_supir.inference.captioner import Captioner, one_line


class CachedCaptioner:
    """Asks a captioner only about images that it was not asked about before.

    Args:
        captioner: Whom to ask; its `identity` names model and question.
        folder: Where answers are kept, one file each; made when the first is.
    """

    def __init__(self, captioner: Captioner, folder: str | Path) -> None:
        self.captioner = captioner
        self.folder = Path(folder)
        remove_leftovers(self.folder)

    def __call__(self, image: Tensor, *, source: Path | None = None) -> str:
        """Return the caption of `image` (3, H, W) in [0, 1]."""
        identity = getattr(self.captioner, "identity", "")
        pixels = to_uint8(image).cpu().contiguous()
        digest = hashlib.sha256(f"{identity} {tuple(pixels.shape)} ".encode())
        digest.update(pixels.numpy().tobytes())
        path = self.folder / f"{digest.hexdigest()}.json"
        try:
            return one_line(json.loads(path.read_bytes())["caption"])
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: ask
            caption = self.captioner(image, source=source)
        write_text(path, json.dumps({"caption": caption, "by": identity}))
        return caption
