"""Captions cached on disk by image, model and question."""

import hashlib
import json
from pathlib import Path

from torch import Tensor

from open_supir.base.files import remove_leftovers, write_text
from open_supir.base.images import to_uint8
from open_supir.base.images.captions import one_line
from open_supir.inference.captioner import Captioner


class CachedCaptioner:
    """Asks a captioner only about images it has not seen before.

    Args:
        captioner: The captioner to ask; its `identity` names model and question.
        folder: Where captions are stored, one file each; created with the first.
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
        except (OSError, ValueError, KeyError, TypeError):  # missing or damaged: ask
            caption = self.captioner(image, source=source)
        write_text(path, json.dumps({"caption": caption, "by": identity}))
        return caption
