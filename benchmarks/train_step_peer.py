"""The peer of bench_train_step.py: stage 2 with a graph through everything."""

from torch import Tensor

from src.data.samples import Batch
from src.diffusion.denoiser import append_dims
from src.diffusion.training_noise import seeded_randn
from src.images import to_signed
from src.networks import ControlledUNet
from src.networks.conditioner import Conditioning
from src.networks.control import Hint
from src.training import SupirModule


class NaiveControlledUNet(ControlledUNet):
    """The joint forward with a graph through everything."""

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Conditioning,
        z_lq: Tensor | Hint,
        control_scale: float = 1.0,
    ) -> Tensor:
        """Predict as ControlledUNet does."""
        features = self.control(x, t, cond, z_lq)
        emb = self.unet.embed(t, cond.vector)
        h, skips = self.unet.encode(x, emb, cond.context)
        join = self.connector.bind(features, control_scale)
        return self.unet.decode(h, skips, emb, cond.context, join)


def naive_loss(module: SupirModule, batch: Batch) -> Tensor:
    """Return what `SupirModule.training_step` returns, with everything in the graph."""
    hq = to_signed(batch["hq"])
    lq = module.degradation(hq, batch["seed"])
    z = module.vae.encode(hq)
    z_lq = module.robust_encoder(lq)
    cond = module.conditioner(batch["caption"], batch["sizes"])
    sigma = module.noise.sample(batch["seed"], z.device)
    noise = seeded_randn(batch["seed"], z.shape, device=z.device)
    x = z + append_dims(sigma, z.ndim) * noise
    denoised = module.denoiser(module.network, x, sigma, cond, z_lq)
    error = (denoised - z).square().mean(dim=(1, 2, 3))
    return (module.noise.weight(sigma) * error).mean()
