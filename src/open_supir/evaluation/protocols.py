"""Protocols: how a benchmark pairs, crops and resizes images, and what it measures.

Images are (1, 3, H, W) float in [0, 1].
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from open_supir.base.images import list_images, read_image, resize, to_unit
from open_supir.base.images.tensors import resize_short_side
from open_supir.evaluation.metrics import select_metrics
from open_supir.evaluation.samples import BrokenSample, Sample, rounded_to_8_bits
from open_supir.evaluation.synthetic import FixedDegradation

# (hq (1, 3, H, W), seed) -> lq in the same range, and its parameters as JSON values
Degrade = Callable[[Tensor, int], tuple[Tensor, Mapping[str, Any]]]


HELD_OUT = "heldout"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The conventions of one benchmark."""

    name: str  # as in conf/protocol
    source: str  # the paper or script the conventions follow
    metrics: tuple[str, ...]  # names in METRICS
    obtain: str = ""  # where the images come from, and their licence
    hq_folder: str | None = None  # HQ images, below the data root; None if there is no reference
    lq_folder: str | None = None  # LQ images, below the data root; None if HQ images are degraded
    # how HQ images are degraded; None leaves it to the caller of `load_samples`
    degradation: FixedDegradation | None = None
    # HQ images are first resized to this shorter side; None keeps their size
    short_side: int | None = None
    # side of the centred square that is then cropped; None keeps the whole image
    crop: int | None = None
    scale: int = 1  # factor by which LQ images are enlarged (bicubic) before restoration
    border: int = 0  # pixels cropped from each side before measuring
    seed: int = 0  # degradation seed; each image's own seed derives from this and its name
    repeats: int = 1  # how often each HQ image is degraded, each time with a different seed
    limit: int | None = None  # use at most this many images, in order of name
    lq_name: str = "{stem}"  # file stem of the LQ partner; "{stem}" stands for the HQ image's stem

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", tuple(self.metrics))
        select_metrics(self.metrics)
        for field in ("short_side", "crop", "scale", "repeats", "limit"):
            value = getattr(self, field)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{field} must be a whole number of at least 1, got {value}")
        if self.border < 0:
            raise ValueError(f"border must be 0 or more, got {self.border}")
        if self.degradation is not None and self.degradation.scale != self.scale:
            raise ValueError(
                f"degradation.scale is {self.degradation.scale}, but scale is {self.scale}"
            )

    def settings(self) -> dict[str, Any]:
        """Return what the values depend on, as JSON values, for the records."""
        fields = asdict(self)
        others = ("metrics", "source", "obtain", "limit")  # no image's values depend on them
        settings = {key: value for key, value in fields.items() if key not in others}
        return {"protocol": settings.pop("name"), **settings}

    def on(self, root: Path, heldout: str | None) -> "Protocol":
        """Return the protocol as it is named on a run's own held-out photographs."""
        if heldout is None or self.hq_folder != HELD_OUT or Path(heldout) == root / HELD_OUT:
            return self
        about = {"source": "photographs held out from the run", "obtain": "See docs/own_photos.md"}
        return replace(self, name=HELD_OUT, **about)

    def folders(self, root: Path, heldout: str | None = None) -> tuple[Path | None, Path | None]:
        """Return the HQ and LQ folders below `root`.

        Args:
            heldout: A run's folder of held-out photographs, which the name `heldout` stands for.

        Raises:
            FileNotFoundError: A folder does not exist; the message says where to get the images.
        """
        names = (self.hq_folder, self.lq_folder)
        paths = [None if name is None else root / name for name in names]
        if heldout is not None and self.hq_folder == HELD_OUT:
            paths[0] = Path(heldout)
        for path in paths:
            if path is not None and not path.exists():
                hint = f". {self.obtain}" if self.obtain else ""
                raise FileNotFoundError(f"protocol {self.name}: {path} does not exist{hint}")
        return paths[0], paths[1]

    def inputs(self, root: Path) -> list[Path]:
        """Return the files below `root` that are restored, or that LQ images are made of.

        Raises:
            FileNotFoundError: A folder does not exist.
        """
        hq, lq = self.folders(root)
        folder = lq or hq
        return [] if folder is None else list_images(folder)[: self.limit]


def load_samples(
    protocol: Protocol,
    *,
    hq: Path | None = None,
    lq: Path | None = None,
    degrade: Degrade | None = None,
) -> Iterator[Sample | BrokenSample]:
    """Yield the images of a benchmark, sorted by name.

    With `hq` alone, each image is degraded by the protocol's degradation or by `degrade`; with both
    folders, images are paired by name; with `lq` alone, there is no reference. Unreadable images,
    missing partners and images too small to crop are yielded as BrokenSample.

    Args:
        hq: Folder (or file) of HQ images.
        lq: Folder (or file) of LQ images.
        degrade: (hq (1, 3, H, W) in [0, 1], seed) -> lq and its parameters; used if the protocol
            has no degradation.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: A folder has no images, or there is nothing to make LQ images from.
    """
    if hq is None and lq is None:
        raise ValueError(f"protocol {protocol.name} needs a folder of HQ or of LQ images")
    if hq is None:
        return _unpaired(protocol, cast(Path, lq))
    if lq is not None:
        return _paired(protocol, hq, lq)
    fixed = protocol.degradation
    if fixed is not None:
        return _degraded(protocol, hq, _by(fixed))
    if degrade is None:
        raise ValueError(f"protocol {protocol.name} needs LQ images or a degradation")
    return _degraded(protocol, hq, degrade)


def _by(fixed: FixedDegradation) -> Degrade:
    values = {key: value for key, value in asdict(fixed).items() if value not in (None, 1)}
    return lambda hq, seed: (fixed(hq, seed), {"seed": seed, **values})


def seed_of(seed: int, name: str) -> int:
    """Return the seed of one image, derived from the benchmark's seed and the image's name."""
    return zlib.crc32(f"{seed}/{name}".encode())


def _degraded(protocol: Protocol, hq: Path, degrade: Degrade) -> Iterator[Sample | BrokenSample]:
    names = _names(list_images(hq)[: protocol.limit], hq)
    repeated = {
        (name if protocol.repeats == 1 else f"{name}_{index}"): path
        for name, path in names.items()
        for index in range(protocol.repeats)
    }

    def load(path: Path, name: str) -> Sample:
        clean = _frame(protocol, _read(path))
        lq, how = degrade(clean, seed_of(protocol.seed, name))
        return _sample(protocol, name, rounded_to_8_bits(lq), clean, path, how)

    return _each(repeated, load)


def _paired(protocol: Protocol, hq: Path, lq: Path) -> Iterator[Sample | BrokenSample]:
    clean = _names(list_images(hq), hq)
    degraded = _names(list_images(lq), lq)
    wanted = {name: _partner(protocol, name) for name in list(clean)[: protocol.limit]}

    def load(path: Path, name: str) -> Sample:
        if wanted[name] not in degraded:
            raise ValueError(f"no LQ partner {wanted[name]} in {lq}")
        small = _read(degraded[wanted[name]])
        low = _enlarge(protocol, small)
        high = _frame(protocol, _read(path))
        if protocol.crop and low.shape != high.shape:
            low = _frame(protocol, low)
        if low.shape != high.shape:
            raise ValueError(f"LQ is {_size(low)} after scaling, HQ is {_size(high)}")
        return Sample(name, low, high, degraded[wanted[name]], small=small)

    def samples() -> Iterator[Sample | BrokenSample]:
        yield from _each({name: clean[name] for name in wanted}, load)
        if protocol.limit is None:
            for name in sorted(set(degraded) - set(wanted.values())):
                yield BrokenSample(name=name, reason=f"no HQ partner in {hq}")

    return samples()


def _unpaired(protocol: Protocol, lq: Path) -> Iterator[Sample | BrokenSample]:
    names = _names(list_images(lq)[: protocol.limit], lq)
    return _each(names, lambda path, name: _sample(protocol, name, _read(path), None, path, {}))


def _each(
    paths: dict[str, Path], load: Callable[[Path, str], Sample]
) -> Iterator[Sample | BrokenSample]:
    for name, path in paths.items():
        try:
            sample = load(path, name)
        except (ValueError, OSError) as error:
            yield BrokenSample(name=name, reason=str(error))
            continue
        yield sample


def _sample(
    protocol: Protocol,
    name: str,
    lq: Tensor,
    hq: Tensor | None,
    source: Path,
    how: Mapping[str, Any],
) -> Sample:
    enlarged = _enlarge(protocol, lq)
    return Sample(name, enlarged, hq, source, how, small=None if enlarged is lq else lq)


def _names(paths: list[Path], folder: Path) -> dict[str, Path]:
    """Name images by their path below the folder, without suffix.

    Raises:
        ValueError: Two files differ only in suffix.
    """
    root = folder if folder.is_dir() else folder.parent
    names: dict[str, Path] = {}
    for path in paths:
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in names:
            raise ValueError(f"{names[name]} and {path} differ in suffix only; keep one of them")
        names[name] = path
    return names


def _partner(protocol: Protocol, name: str) -> str:
    parent, _, stem = name.rpartition("/")
    partner = protocol.lq_name.format(stem=stem)
    return f"{parent}/{partner}" if parent else partner


def _frame(protocol: Protocol, image: Tensor) -> Tensor:
    """Resize the short side and crop the centre, as the protocol says."""
    if protocol.short_side is not None:
        image = resize_short_side(image, protocol.short_side).clamp(0, 1)
    if protocol.crop is None:
        return image
    height, width = image.shape[-2:]
    side = protocol.crop
    if min(height, width) < side:
        raise ValueError(f"{height}x{width} is smaller than the crop of {side} pixels")
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side]


def _enlarge(protocol: Protocol, image: Tensor) -> Tensor:
    if protocol.scale == 1:
        return image
    height, width = image.shape[-2:]
    return resize(image, (height * protocol.scale, width * protocol.scale)).clamp(0, 1)


def _read(path: Path) -> Tensor:
    return to_unit(read_image(path)).unsqueeze(0)


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"
