"""Stage 2's step as a first version would have it: everything in the graph."""

from typing import Any

from torch import Tensor

from open_supir.base.images import to_signed
from open_supir.data.samples import Batch
from open_supir.diffusion.denoiser import append_dims
from open_supir.diffusion.training_noise import seeded_noise
from open_supir.networks.unet import UNet
from open_supir.training import SupirModule


def train_everything(module: SupirModule) -> None:
    """Make every parameter require a gradient."""
    module.requires_grad_(True)


def naive_loss(module: SupirModule, batch: Batch) -> Tensor:
    """Return the loss of `SupirModule.training_step`, without a `no_grad` anywhere."""
    hq = to_signed(batch["hq"]).to(next(module.vae.parameters()).dtype)
    lq = module.degradation(hq, batch["seed"])
    z = module.vae.encode(hq)
    z_lq = module.robust_encoder(lq)
    cond = module.conditioner(batch["caption"], batch["sizes"])
    sigma = module.noise.sample(batch["seed"], z.device)
    x = z + append_dims(sigma, z.ndim) * seeded_noise(batch["seed"], z.shape, device=z.device)
    denoised = module.denoiser(NaiveNetwork(module), x, sigma, cond, z_lq)
    error = (denoised - z).square().mean(dim=(1, 2, 3))
    return (module.noise.weight(sigma) * error).mean()


class NaiveNetwork:
    """The controlled UNet, its encoder in the graph."""

    def __init__(self, module: SupirModule) -> None:
        self.network = module.network

    def __call__(self, x: Tensor, t: Tensor, cond: Any, z_lq: Tensor, _: float = 1.0) -> Tensor:
        """Predict from noisy latents."""
        unet: UNet = self.network.unet
        features = self.network.control(x, t, cond, z_lq)
        emb = unet.embed(t, cond.vector)
        context = cond.context.to(emb.dtype)
        h, skips = unet.encode(x, emb, context)
        join = self.network.connector.bind(features, 1.0)
        return unet.decode(h, skips, emb, context, join).float()
