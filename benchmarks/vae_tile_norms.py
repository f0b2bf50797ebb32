"""How far `vae_tile_norms=estimated` is from the whole image, on photographs.

    python benchmarks/vae_tile_norms.py checkpoint=FILE photos=DIR [sides=512,1024,2048]
        [count=4] [reduced=2,4] [pictures=DIR]

The checkpoint is one of `experiment=vae` with group norms; the one that ships has none. Photographs
are resized and cropped to squares. Tiles are half and a quarter of the side, so the image whose
statistics are taken is reduced by 2 and by 4.

Decoding: the decoded latent of the photograph against the whole's. Encoding: the whole decoding of
the tiles' latent against that of the whole's. Both in 8-bit levels, means over photographs (the
maximum: of all), and PSNR between the two.

Seams: the mean absolute difference of neighbouring pixels across the tiles' borders, as a multiple
of that in the whole image's result at the same place, against the same multiple of all pixels; in
percent.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from open_supir.base.images import list_images, read_image, resize, to_signed, to_unit
from open_supir.base.images.write import write_image
from open_supir.base.registry import build
from open_supir.networks import AutoencoderKL
from open_supir.networks.tiled_vae import VaeTiles, decode_tiled, encode_tiled


def square(path: Path, side: int) -> Tensor:
    """Return the middle of a photograph (1, 3, side, side) in [-1, 1], its shorter side resized."""
    image = to_unit(read_image(path))[None]
    scale = side / min(image.shape[-2:])
    size = [max(side, round(length * scale)) for length in image.shape[-2:]]
    image = resize(image, (size[0], size[1])).clamp(0, 1)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return to_signed(image[..., top : top + side, left : left + side])


def compared(out: Tensor, whole: Tensor) -> list[float]:
    """Return the difference's mean, 99th percentile and maximum in levels, and PSNR in dB."""
    levels = ((out - whole).abs() * 127.5).flatten()
    most = levels.kthvalue(round(0.99 * levels.numel())).values
    psnr = 10 * torch.log10(255**2 / levels.square().mean())
    return [value.item() for value in (levels.mean(), most, levels.max(), psnr)]


def seams(out: Tensor, whole: Tensor, tile: int) -> float:
    """Return the excess of the gradient across the tiles' borders, in percent."""

    def grown(first: int, step: int) -> float:
        new, old = (
            [side.diff(dim=-1)[..., first::step].abs().mean().item() for side in (image, image.mT)]
            for image in (out, whole)
        )
        return sum(new) / sum(old)

    return 100 * (grown(tile - 1, tile) / grown(0, 1) - 1)


@torch.no_grad()
def main() -> None:
    """Print a row for each side and reduction."""
    torch.set_num_threads(1)
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    saved = torch.load(given["checkpoint"], map_location="cpu", weights_only=False)
    vae = build(saved["recipe"]["architecture"]["vae"])
    assert isinstance(vae, AutoencoderKL)
    states = {k.removeprefix("vae."): v for k, v in saved["state_dict"].items() if "vae." in k}
    vae.load_state_dict(states)
    vae.eval()
    photos = list_images(given["photos"])[: int(given.get("count", 4))]
    print("| side | reduced by | part | mean | 99 % | most | dB | seams, % |\n" + "|---" * 8 + "|")
    for side in map(int, given.get("sides", "512,1024,2048").split(",")):
        found: dict[tuple[int, str], list[list[float]]] = {}
        for path in photos:
            image = square(path, side)
            z = vae.encode(image)
            whole = vae.decode(z)
            for factor in map(int, given.get("reduced", "2,4").split(",")):
                tile = side // factor
                tiles = VaeTiles(tile=tile, norms="estimated")
                decoded = decode_tiled(vae, z, tiles)
                values = [*compared(decoded, whole), seams(decoded, whole, tile)]
                found.setdefault((factor, "decode"), []).append(values)
                latent = vae.scale_factor * encode_tiled(vae, image, tiles).mean
                other = vae.decode(latent)
                values = [*compared(other, whole), seams(other, whole, tile)]
                found.setdefault((factor, "encode"), []).append(values)
                if "pictures" in given:
                    both = torch.cat([whole, decoded], dim=-1)
                    name = f"{path.stem}_{side}_{factor}.png"
                    write_image(Path(given["pictures"]) / name, to_unit(both)[0])
        for (factor, part), rows in found.items():
            mean, high, _, psnr, seam = torch.tensor(rows).mean(dim=0).tolist()
            most = max(row[2] for row in rows)
            print(f"| {side} | {factor} | {part} | {mean:.2f} | {high:.2f} | {most:.1f} | "
                  f"{psnr:.1f} | {seam:+.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
