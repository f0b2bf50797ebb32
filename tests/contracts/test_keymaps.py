"""Names and shapes of the released weights, through the key maps and back.

The lists hold every tensor of SDXL base with SUPIR-v0Q: official name, shape, and its name in
diffusers' layout. They lie outside the repository; without them these tests are skipped.
"""

import gzip
from pathlib import Path
from typing import NamedTuple

import pytest

from open_supir.checkpoints.diffusers_names import diffusers_pieces, from_diffusers, to_diffusers
from open_supir.checkpoints.keymaps import (
    from_official,
    is_dropped,
    official_pieces,
    piece_shapes_join,
    split_marker,
    text_pieces,
    to_official,
    to_piece,
)
from tests.contracts.full_size import full_size_parts

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "supir"
KEYS = FIXTURES / "supir_keys.txt.gz"
SOURCES = FIXTURES / "supir_keys_sources.tsv.gz"

pytestmark = pytest.mark.skipif(
    not (KEYS.is_file() and SOURCES.is_file()), reason=f"no lists of released names in {FIXTURES}"
)

NOT_WEIGHTS = {
    "denoiser.sigmas",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
    "conditioner.embedders.1.model.logit_scale",
    "model.control_model.mask_LQ",
}
TENSORS = {
    "unet": 1680,
    "connector": 118,
    "control": 810,
    "vae": 248,
    "robust_encoder": 106,
    "clip_l": 148,
    "clip_g": 389,
}


class Row(NamedTuple):
    """One tensor: official name, shape, source, and names in diffusers' layout."""

    key: str
    shape: str
    source: str
    diffusers: str


@pytest.fixture(scope="module")
def shapes() -> dict[str, tuple[int, ...]]:
    """Shapes by official name."""
    lines = gzip.decompress(KEYS.read_bytes()).decode().splitlines()
    return {key: _shape(shape) for key, shape in (line.split() for line in lines)}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The table of sources."""
    lines = gzip.decompress(SOURCES.read_bytes()).decode().splitlines()
    return [Row(*line.split("\t")) for line in lines]


def _shape(text: str) -> tuple[int, ...]:
    return () if text == "scalar" else tuple(int(side) for side in text.split("x"))


def test_every_official_name_comes_back_and_the_rest_is_named(
    shapes: dict[str, tuple[int, ...]],
) -> None:
    ours = {key: from_official(key) for key in shapes}
    lost = {key for key, name in ours.items() if name is None}
    assert lost <= NOT_WEIGHTS
    assert all(is_dropped(key) for key in NOT_WEIGHTS)
    assert {key: to_official(name) for key, name in ours.items() if name} == {
        key: key for key in shapes if key not in lost
    }


def test_parts_hold_as_many_tensors_as_the_released_model(
    shapes: dict[str, tuple[int, ...]],
) -> None:
    names = {split_marker(name)[0] for key in shapes if (name := from_official(key))}
    counts = {part: sum(n.startswith(f"{part}.") for n in names) for part in TENSORS}
    assert counts == TENSORS


def test_our_names_are_stored_under_exactly_the_official_ones(
    shapes: dict[str, tuple[int, ...]],
) -> None:
    names = {split_marker(name)[0] for key in shapes if (name := from_official(key))}
    stored = [to_official(piece) for name in names for piece in official_pieces(name)]
    assert len(stored) == len(set(stored))
    assert set(stored) == set(shapes) - NOT_WEIGHTS


def test_every_diffusers_name_maps_both_ways(rows: list[Row]) -> None:
    checked = 0
    for row in rows:
        name = from_official(row.key)
        if name is None or "/" not in row.diffusers:
            continue
        # the table joins the three names of a fused projection by bars
        folder, _, inner = row.diffusers.split(" [")[0].partition("/")
        wanted = [_our_folder(f"{folder}/{one}") for one in inner.split("|")]
        base, marker = split_marker(name)
        pieces = (name,) if marker else diffusers_pieces(base)
        assert [to_diffusers(piece) for piece in pieces] == wanted
        assert [from_diffusers(one) for one in wanted] == list(pieces)
        checked += 1
    assert checked == 1680 + 248 + 106 + 808 + 196 + 389


def _our_folder(key: str) -> str:
    """Parts that diffusers has no class for go to folders of our own."""
    key = key.replace("controlnet-like/", "controlnet/")
    return key.replace("vae/denoise_encoder.", "robust_encoder/encoder.")


def test_text_towers_have_official_shapes_after_fusion(
    shapes: dict[str, tuple[int, ...]],
) -> None:
    prefix = "clip_l.transformer.resblocks.11.attn.in_proj_weight"
    thirds = {p.partition(":")[2]: shapes[to_official(p)] for p in text_pieces(prefix)}
    assert piece_shapes_join(thirds) == (3 * 768, 768)


def test_our_networks_make_every_official_tensor_at_full_size(
    shapes: dict[str, tuple[int, ...]],
) -> None:
    """Names and shapes of our modules, built without memory, through the maps: no more, no less."""
    made = {}
    for part, module in full_size_parts().items():
        for name, tensor in module.state_dict().items():
            if f"{part}.{name}".startswith("robust_encoder.quant_conv."):
                continue  # the VAE's
            for piece in official_pieces(f"{part}.{name}"):
                stored = to_piece(tensor, split_marker(piece)[1])
                made[to_official(piece)] = tuple(stored.shape)
    assert made == {key: shape for key, shape in shapes.items() if key not in NOT_WEIGHTS}
