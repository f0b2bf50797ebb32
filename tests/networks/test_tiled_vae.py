"""The tiled autoencoder against the untiled one.

Weights and images are random and uneven, so that tiles differ in their statistics. Tolerance is
1e-5 of the largest value: float32, sums in another order.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from open_supir.networks import AutoencoderKL, RobustEncoder
from open_supir.networks import tiled_vae as module
from open_supir.networks.tiled_vae import VaeTiles, decode_tiled, encode_tiled
from tests.conftest import randomise

GOLDEN = Path(__file__).parents[3] / "shared" / "fixtures" / "supir" / "golden.pt"
TILES = VaeTiles(tile=64)


def _vae(groups: int = 4, blocks: int = 2) -> AutoencoderKL:
    torch.manual_seed(0)
    return randomise(
        AutoencoderKL(
            ch=8,
            ch_mult=[1, 1, 1, 2],
            num_res_blocks=blocks,
            z_channels=4,
            scale_factor=0.5,
            groups=groups,
        ),
        scale=0.1,
    ).eval()


def _uneven(*shape: int) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    y = torch.linspace(-1.5, 1.5, shape[-2])[:, None]
    x = torch.linspace(0, 1, shape[-1])[None, :]
    return noise * (0.2 + 1.8 * (x > 0.5)) + y


def _error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max()).item()


# in latent pixels: smaller than a tile, a tile, one more, primes, 1:20
SIZES = [(3, 5), (8, 8), (8, 9), (17, 23), (3, 60)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("groups", [4, 0])
@torch.no_grad()
def test_decode_equals_untiled(size: tuple[int, int], groups: int) -> None:
    vae, z = _vae(groups), _uneven(1, 4, *size)
    assert _error(decode_tiled(vae, z, TILES), vae.decode(z)) < 1e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("robust", [False, True])
@torch.no_grad()
def test_encode_equals_untiled(size: tuple[int, int], robust: bool) -> None:
    vae, image = _vae(), _uneven(2, 3, size[0] * 8, size[1] * 8)
    part = RobustEncoder(vae) if robust else vae
    posterior = encode_tiled(part, image, TILES)
    expected = vae.posterior(image)
    assert _error(posterior.mean, expected.mean) < 1e-5
    assert _error(posterior.logvar, expected.logvar) < 1e-5


@torch.no_grad()
def test_order_of_tiles_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, z = _vae(), _uneven(1, 4, 17, 23)
    forward = decode_tiled(vae, z, TILES)
    spans = module.spans
    monkeypatch.setattr(module, "spans", lambda *a, **k: spans(*a, **k)[::-1])
    assert _error(decode_tiled(vae, z, TILES), forward) < 1e-5


@torch.no_grad()
def test_averaged_tile_variances_would_not_do() -> None:
    """Norms per tile, as widely done, are far off: the test image tells methods apart."""
    vae, z = _vae(), _uneven(1, 4, 16, 16)
    halves = [vae.decode(half) for half in z.split(8, dim=-1)]
    assert _error(torch.cat(halves, dim=-1), vae.decode(z)) > 0.05


@torch.no_grad()
def test_reach_is_what_the_networks_really_see() -> None:
    """One latent pixel changed: the decoder's change ends where the computed reach does."""
    vae = _vae(groups=0)
    vae.decoder.mid = nn.Identity()
    vae.decoder.conv_in, vae.post_quant_conv = nn.Conv2d(4, 16, 1), nn.Identity()
    z = _uneven(1, 4, 40, 40)
    other = z.clone()
    other[..., 20, 20] += 10
    changed = (vae.decode(z) != vae.decode(other)).any(dim=1)[0].any(dim=0).nonzero().flatten()
    seen = max(20 * 8 - changed.min().item(), changed.max().item() - (21 * 8 - 1)) / 8
    tail = nn.Sequential(*reversed(vae.decoder.up), vae.decoder.conv_out)
    assert seen <= module._reach(tail) <= seen + 1
    assert module._reach(tail) == 12.25  # the full-size decoder's, of the same depth


@pytest.mark.parametrize("groups", [4, 0])
@torch.no_grad()
def test_beyond_the_attention_limit_tiles_are_near_and_seamless(groups: int) -> None:
    """An approximation: attention sees windows. It is nearer than tiles decoded on their own, and
    its jumps at tile edges are those of elsewhere.
    """
    vae, z = _vae(groups), _uneven(1, 4, 40, 40)
    local = VaeTiles(tile=128, attention_tokens=256)
    out, whole = decode_tiled(vae, z, local), vae.decode(z)
    alone = torch.cat([vae.decode(row) for row in z.split(14, dim=-2)], dim=-2)
    assert (out - whole).norm() < 0.7 * (alone - whole).norm()
    difference = (out - whole).diff(dim=-1).abs().mean(dim=(0, 1, 2))
    edges = [s.core_start * 8 - 1 for s in module.spans(40, 16, halo=0, ramp=0, multiple=1)[1:]]
    assert difference[edges].mean() < 2 * difference.mean()


@torch.no_grad()
def test_windows_are_smaller_than_what_attention_may_see_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cost grows with the windows' area: those of the largest whole latent would take hours."""
    vae, z = _vae(), _uneven(1, 4, 40, 40)
    windows = decode_tiled(vae, z, VaeTiles(tile=128, attention_tokens=8**2))
    monkeypatch.setattr(module, "MAX_TOKENS_CPU", 32**2)
    monkeypatch.setattr(module, "WINDOW", 8)
    assert torch.equal(decode_tiled(vae, z, VaeTiles(tile=128)), windows)
    small = z[..., :32, :32]
    assert _error(decode_tiled(vae, small, VaeTiles(tile=128)), vae.decode(small)) < 1e-5


@torch.no_grad()
def test_what_is_kept_between_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From nothing to all, against the untiled result. Parts are counted by hand."""
    vae, z = _vae(), _uneven(1, 4, 17, 23)
    image, counts = _uneven(1, 3, 136, 184), []
    parts = module._parts
    monkeypatch.setattr(module, "_parts", lambda *a, **k: counts.append(p := parts(*a, **k)) or p)
    for kept in (0, 8, 10**6):
        monkeypatch.setattr(module, "KEPT", kept)
        assert _error(decode_tiled(vae, z, TILES), vae.decode(z)) < 1e-5
        assert _error(encode_tiled(vae, image, TILES).mean, vae.posterior(image).mean) < 1e-5
    assert [len(p) for p in counts[::2]] == [1, 7, 13]  # blocks of two levels, of all four
    assert [len(p) for p in counts[1::2]] == [1, 5, 8]  # the last of a level with what halves it


@torch.no_grad()
def test_what_waits_on_the_host_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is kept, in the layout that it has beside a GPU, against the untiled result."""
    vae, z = _vae(), _uneven(2, 4, 17, 23)
    image, run, hosts = _uneven(2, 3, 136, 184), module._Sweep.run, []

    def on_host(sweep: module._Sweep, *, on_host: bool) -> module.Canvas:
        hosts.append(run(sweep, on_host=True))
        return hosts[-1]

    monkeypatch.setattr(module._Sweep, "run", on_host)
    assert _error(decode_tiled(vae, z, TILES), vae.decode(z)) < 1e-5
    assert _error(encode_tiled(vae, image, TILES).mean, vae.posterior(image).mean) < 1e-5
    assert sum(canvas.on_host for canvas in hosts) > 10


@torch.no_grad()
def test_a_canvas_drops_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a result is complete, no band of what it was made from is left."""
    bands, run = [], module._Sweep.run

    def noted(sweep: module._Sweep, *, on_host: bool) -> module.Canvas:
        made = run(sweep, on_host=on_host)
        bands.append((len(sweep.source.bands), len(made.bands)))
        return made

    monkeypatch.setattr(module._Sweep, "run", noted)
    decode_tiled(_vae(), _uneven(1, 4, 40, 17), TILES)
    # 40 latent pixels in tiles of 8; halved for the last norm and convolution, which overlap by 1
    assert bands == [(0, 5)] * 12 + [(0, 10)]


@torch.no_grad()
def test_windows_leave_all_else_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that adds nothing: the rest is that of the whole, in parts or in one sweep."""
    vae, z = _vae(), _uneven(1, 4, 20, 12)
    image = _uneven(1, 3, 160, 96)
    monkeypatch.setattr(module.AttnBlock, "attend", lambda block, normed: torch.zeros_like(normed))
    local, counts, parts = VaeTiles(tile=64, attention_tokens=64), [], module._parts
    monkeypatch.setattr(module, "_parts", lambda *a, **k: counts.append(p := parts(*a, **k)) or p)
    for kept in (0, 10**6):
        monkeypatch.setattr(module, "KEPT", kept)
        assert _error(decode_tiled(vae, z, local), vae.decode(z)) < 1e-5
        assert _error(encode_tiled(vae, image, local).mean, vae.posterior(image).mean) < 1e-5
    # the middle's three units and those of the levels; the last ones with norm and convolutions
    assert [len(p) for p in counts] == [1, 1, 3 + 12 + 1, 8 + 3 + 1]


@torch.no_grad()
def test_low_precision_is_no_worse_in_tiles() -> None:
    """bfloat16 against float32: the tiles' norms round input and output only, as the plain ones."""
    vae, z = _vae(), _uneven(1, 4, 16, 16)
    expected = vae.decode(z)
    vae.bfloat16()
    whole, tiled = vae.decode(z), decode_tiled(vae, z, TILES)
    assert (tiled - expected).norm() < 1.1 * (whole - expected).norm()


@torch.no_grad()
def _with_norms_of(chain: nn.Module, model: Tensor, x: Tensor) -> Tensor:
    """Apply `chain` to x, its norms with the statistics that they have in `model`."""
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(norm, args, out) -> None:
        groups = args[0].unflatten(1, (norm.num_groups, -1))
        found[norm] = torch.var_mean(groups, dim=(2, 3, 4), correction=0)

    def apply(norm, args, out) -> Tensor:
        variance, mean = (v[..., None, None, None] for v in found[norm])
        groups = args[0].unflatten(1, (norm.num_groups, -1))
        normed = ((groups - mean) / (variance + norm.eps).sqrt()).flatten(1, 2)
        return normed * norm.weight[:, None, None] + norm.bias[:, None, None]

    norms = [m for m in chain.modules() if isinstance(m, nn.GroupNorm)]
    for hook, source in ((note, model), (apply, x)):
        handles = [norm.register_forward_hook(hook) for norm in norms]
        out = chain(source)
        for handle in handles:
            handle.remove()
    return out


@torch.no_grad()
def test_estimated_norms_are_those_of_the_reduced_image() -> None:
    """24 x 12 latent pixels in tiles of 8 x 8: every second one in both directions, 12 x 6, has a
    tile's area (rounded up). The expected values are found by hooks, without tiles.
    """
    vae, z = _vae(), _uneven(1, 4, 24, 12)
    decoder, tiles = vae.decoder, VaeTiles(tile=64, norms="estimated")
    tail = nn.Sequential(*reversed(decoder.up), decoder.norm_out, nn.SiLU(), decoder.conv_out)
    h = decoder.mid(decoder.conv_in(vae.post_quant_conv(z / vae.scale_factor)))
    reduced = nn.functional.interpolate(h, size=(12, 6), mode="nearest-exact")
    assert _error(decode_tiled(vae, z, tiles), _with_norms_of(tail, reduced, h)) < 1e-4
    assert _error(decode_tiled(vae, z, tiles), vae.decode(z)) > 0.01  # an approximation

    image, encoder = _uneven(1, 3, 192, 96), vae.encoder
    head = nn.Sequential(encoder.conv_in, *encoder.down)
    reduced = nn.functional.interpolate(image, size=(96, 48), mode="nearest-exact")
    h = encoder.mid(_with_norms_of(head, reduced, image))
    moments = vae.quant_conv(encoder.conv_out(nn.functional.silu(encoder.norm_out(h))))
    assert _error(encode_tiled(vae, image, tiles).mean, moments.chunk(2, dim=1)[0]) < 1e-4


@torch.no_grad()
def test_estimated_norms_change_nothing_in_a_single_tile() -> None:
    vae, z = _vae(), _uneven(1, 4, 8, 8)
    assert torch.equal(decode_tiled(vae, z, VaeTiles(tile=64, norms="estimated")), vae.decode(z))


@torch.no_grad()
def test_modules_are_left_as_they_were() -> None:
    vae, z = _vae(), _uneven(1, 4, 17, 23)
    before = [id(m) for m in vae.modules()], [p.clone() for p in vae.parameters()]
    decode_tiled(vae, z, TILES)
    assert [id(m) for m in vae.modules()] == before[0]
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), before[1], strict=True))


@pytest.mark.parametrize("options", [dict(tile=16), dict(attention_tokens=0)])
def test_impossible_tiles_are_refused_by_name(options: dict) -> None:
    with pytest.raises(ValueError, match="tile|attention_tokens"):
        VaeTiles(**options)


@pytest.mark.slow
@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no golden values at {GOLDEN}")
@torch.no_grad()
def test_released_tiles_are_wrong_and_ours_are_the_whole() -> None:
    """The released tiled autoencoder drops the variance between tiles; ours equals untiled."""
    safetensors = pytest.importorskip("safetensors.torch")
    golden = torch.load(GOLDEN, weights_only=True)["vae"]["tiled"]
    vae = AutoencoderKL(
        ch=32, ch_mult=[1, 2, 4, 4], num_res_blocks=2, z_channels=4, scale_factor=1.0
    ).eval()
    prefix = "first_stage_model."
    tensors = safetensors.load_file(GOLDEN.with_name("sdxl_tiny.safetensors"))
    vae.load_state_dict(
        {k.removeprefix(prefix): v.float() for k, v in tensors.items() if k.startswith(prefix)}
    )
    vae.quant_conv = vae.post_quant_conv = nn.Identity()  # the file holds values between them
    tiles = VaeTiles(tile=160)
    ours = decode_tiled(vae, golden["dec_in"], tiles)
    assert _error(golden["dec_tiled"], golden["dec_full"]) > 0.01
    assert _error(ours, golden["dec_full"]) < 1e-5
    robust = safetensors.load_file(GOLDEN.with_name("supir_tiny.safetensors"))
    prefix += "denoise_encoder."
    vae.encoder.load_state_dict(
        {k.removeprefix(prefix): v.float() for k, v in robust.items() if k.startswith(prefix)}
    )
    moments = encode_tiled(vae, golden["img"], tiles)
    full = golden["enc_full"].chunk(2, dim=1)
    assert _error(moments.mean, full[0]) < 1e-5
    assert _error(golden["enc_tiled"], golden["enc_full"]) > 0.01
