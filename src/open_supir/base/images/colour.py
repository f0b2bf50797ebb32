"""Colour profiles: a file's colour description, and the conversion to sRGB."""

import io
import logging
import struct
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

log = logging.getLogger(__name__)

Intent = Literal["perceptual", "relative"]
INTENTS = {
    "perceptual": ImageCms.Intent.PERCEPTUAL,
    "relative": ImageCms.Intent.RELATIVE_COLORIMETRIC,
}
SPACES = {b"GRAY": ("gray", 1), b"RGB ": ("rgb", 3), b"CMYK": ("cmyk", 4)}  # of an ICC header
EXACT = 256  # lcms's NOOPTIMIZE: without it darks of a linear profile are up to 13 levels off
D65 = (0.3127, 0.3290)
D50 = struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)  # white of an ICC header
SRGB_GAMMA = 0.45455  # what writers of sRGB put into gAMA
# ITU-T H.273, table 2: x and y of red, green, blue and white, by code
PRIMARIES = {
    1: (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *D65),  # BT.709, sRGB
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *D65),  # BT.601 at 625 lines
    6: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, *D65),  # BT.601 at 525 lines
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65),  # BT.2020
    11: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.314, 0.351),  # DCI-P3
    12: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, *D65),  # Display P3
}


def _srgb_curve(x: np.ndarray) -> np.ndarray:
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def _bt709_curve(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0.081, x / 4.5, ((x + 0.099) / 1.099) ** (1 / 0.45))


def _power(gamma: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: x**gamma


# ITU-T H.273, table 3: from values of the file to light, by code
CURVES = {
    4: _power(2.2),
    5: _power(2.8),
    8: _power(1.0),
    13: _srgb_curve,
    **dict.fromkeys((1, 6, 14, 15), _bt709_curve),
}


def to_srgb(colour: np.ndarray, icc: bytes | None, intent: Intent = "perceptual") -> np.ndarray:
    """Convert (H, W, C) uint8 or uint16 to sRGB by its profile: (H, W, 1) of grey, else (H, W, 3).

    A profile that does not fit is ignored, with a warning. CMYK without one is ink on white.
    """
    channels = colour.shape[-1]
    if icc and not (channels == 1 and icc == grey_profile()):  # ours stays as it is to the bit
        try:
            return _converted(colour, icc, INTENTS[intent])
        except (ImageCms.PyCMSError, OSError, ValueError, RuntimeError) as error:
            log.warning("colour profile ignored: %s", error)
    return _ink_over_white(colour) if channels == 4 else colour


def _converted(colour: np.ndarray, icc: bytes, intent: ImageCms.Intent) -> np.ndarray:
    import imagecodecs

    height, width, channels = colour.shape
    space, wanted = SPACES.get(bytes(icc[16:20]), ("", 0))
    if (channels, wanted) == (1, 3):
        return _converted(colour.repeat(3, axis=-1), icc, intent)[..., 1:2]
    if wanted != channels:
        raise ValueError(f"it is for {icc[16:20]!r}, the image has {channels} channels")
    if colour.dtype == np.uint8:  # the shards of the embedded default are Pillow's to the bit
        mode = {1: "L", 3: "RGB", 4: "CMYK"}[channels]
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        target = ImageCms.createProfile("sRGB")

        def convert(image: Image.Image, flags: int = 0) -> np.ndarray:
            made = ImageCms.profileToProfile(
                image,
                source,
                target,
                intent,
                "RGB",
                flags=flags,  # type: ignore[arg-type]
            )
            return np.asarray(made)

        ramp = Image.frombytes("L", (256, 1), bytes(range(256))).convert(mode)
        is_rough = channels != 4 and np.abs(convert(ramp) * 1.0 - convert(ramp, EXACT)).max() > 1
        image = Image.frombytes(mode, (width, height), colour.tobytes())
        converted = convert(image, EXACT if is_rough else 0)
    else:
        converted = imagecodecs.cms_transform(
            np.ascontiguousarray(colour[..., 0] if channels == 1 else colour),
            icc,
            imagecodecs.cms_profile("srgb"),
            colorspace=space,
            outcolorspace="rgb",
            outdtype="uint16",
            intent=int(intent),
            flags=EXACT,
        )
    return converted[..., 1:2] if channels == 1 else converted


def from_srgb(colour: np.ndarray, icc: bytes, intent: Intent = "perceptual") -> np.ndarray:
    """Convert (H, W, 1 or 3) uint16 of sRGB to a profile of as many channels, at 16 bits.

    Raises:
        ValueError: The profile is for other channels, or serves for reading only.
    """
    import imagecodecs

    space, wanted = SPACES.get(bytes(icc[16:20]), ("", 0))
    if wanted != colour.shape[-1]:
        raise ValueError(f"the profile is for {icc[16:20]!r}")
    try:
        made = imagecodecs.cms_transform(
            np.ascontiguousarray(colour[..., 0] if wanted == 1 else colour),
            grey_profile() if wanted == 1 else srgb_profile(),
            icc,
            colorspace=space,
            outcolorspace=space,
            outdtype="uint16",
            intent=int(INTENTS[intent]),
            flags=EXACT,
        )
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return made.reshape(colour.shape)


def _ink_over_white(cmyk: np.ndarray) -> np.ndarray:
    full = np.iinfo(cmyk.dtype).max
    out = np.empty((*cmyk.shape[:2], 3), dtype=cmyk.dtype)
    for row, inks in enumerate(cmyk):
        light = 1 - inks.astype(np.float64) / full
        out[row] = np.rint(light[:, :3] * light[:, 3:] * full)
    return out


def is_foreign(icc: bytes | None) -> bool:
    """Return whether a profile is of a colour space other than sRGB."""
    if not icc:
        return False
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(icc)))
    except (ImageCms.PyCMSError, OSError):
        return False  # unreadable: `to_srgb` ignores it too
    return "srgb" not in name.lower()


@cache
def srgb_profile() -> bytes:
    """Return an ICC profile of sRGB, always the same bytes."""
    return _dated(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


@cache
def grey_profile() -> bytes:
    """Return an ICC profile of grey with sRGB's curve, made of the parts of sRGB's own."""
    rgb, names = srgb_profile(), {b"desc": b"desc", b"cprt": b"cprt", b"wtpt": b"wtpt"}
    names[b"rTRC"] = b"kTRC"
    entries = [struct.unpack_from(">4s2I", rgb, at) for at in range(132, 132 + 12 * rgb[131], 12)]
    parts = {names[name]: rgb[at : at + size] for name, at, size in entries if name in names}
    start = 132 + 12 * len(parts)
    table, body = struct.pack(">I", len(parts)), b""
    for name, part in parts.items():
        table += struct.pack(">4s2I", name, start + len(body), len(part))
        body += part + bytes(-len(part) % 4)
    header = struct.pack(">I", start + len(body)) + rgb[4:16] + b"GRAY" + rgb[20:128]
    return header + table + body


def png_profile(data: bytes, info: Mapping[Any, Any]) -> bytes | None:
    """Return the profile of a PNG; one is made of cICP, or of gAMA and cHRM.

    The order is that of the PNG specification (third edition, 4.3): cICP, iCCP, sRGB, gAMA.

    Args:
        info: What Pillow read from the file.

    Raises:
        ValueError: The file is high dynamic range.
    """
    is_grey = data[25] in (0, 4)
    code = _chunk(data, b"cICP")
    if code is not None and len(code) == 4:
        primaries, transfer = code[0], code[1]
        if transfer in (16, 18):
            raise ValueError("colours of high dynamic range (cICP) are not supported")
        if primaries in PRIMARIES and transfer in CURVES:
            return _made_profile(PRIMARIES[primaries], CURVES[transfer], is_grey)
        log.warning("colour description ignored: cICP %d %d", primaries, transfer)
    if info.get("icc_profile"):
        return info["icc_profile"]
    gamma = info.get("gamma")
    if "srgb" in info or not gamma:
        return None
    curve = _srgb_curve if abs(gamma - SRGB_GAMMA) < 0.001 else _power(1 / gamma)
    white_first = info.get("chromaticity")
    points = PRIMARIES[1] if not white_first else (*white_first[2:], *white_first[:2])
    return _made_profile(points, curve, is_grey)


def _made_profile(
    primaries: tuple[float, ...], curve: Callable[[np.ndarray], np.ndarray], is_grey: bool
) -> bytes | None:
    """Return a profile of that colour space; None if it is sRGB."""
    import imagecodecs

    if curve is _srgb_curve and (is_grey or np.allclose(primaries, PRIMARIES[1], atol=0.001)):
        return None

    points = [(*primaries[start : start + 2], 1.0) for start in (0, 2, 4, 6)]
    table = curve(np.linspace(0, 1, 4096)).astype(np.float32)
    if is_grey:
        made = imagecodecs.cms_profile("gray", whitepoint=points[3], transferfunction=table)
    else:
        made = imagecodecs.cms_profile(
            "rgb", whitepoint=points[3], primaries=sum(points[:3], ()), transferfunction=table
        )
    return _dated(made[:68] + D50 + made[80:])  # imagecodecs leaves it 0, and libpng objects


def _dated(icc: bytes) -> bytes:
    """Return a profile with one date of creation, so that it is always the same bytes."""
    return icc[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + icc[36:]


def _chunk(data: bytes, name: bytes) -> bytes | None:
    """Return the content of a PNG chunk ahead of the pixels."""
    at = 8
    while at + 8 <= len(data):
        size, found = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if found in (name, b"IDAT"):
            return data[at + 8 : at + 8 + size] if found == name else None
        at += size + 12
    return None
