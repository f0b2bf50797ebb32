"""Base weights: what each training stage starts from, and where it comes from."""

import logging

import torch
from omegaconf import DictConfig
from torch import nn

from src.checkpoints import load_parts
from src.networks import AutoencoderKL, RobustEncoder
from src.runs import newest_checkpoint
from src.training import PriorModule, RobustEncoderModule, SupirModule, VAEModule

log = logging.getLogger(__name__)


def load_base_weights(module: nn.Module, cfg: DictConfig) -> dict[str, str | None]:
    """Load the frozen parts of a training module and initialise the trained ones from them.

    Returns:
        The files that were used, by key of `weights`; they go into the checkpoint's recipe.

    Raises:
        FileNotFoundError, KeyError, ValueError: A file is missing or wrong; the message names it.
    """
    weights = cfg.weights
    if isinstance(module, VAEModule):
        return {}
    if isinstance(module, PriorModule):
        path = newest_checkpoint(cfg.runs_dir, stage="vae")
        if path is None:
            _load_vae(weights, module.vae)
            return {"sdxl": str(weights.sdxl)}
        log.info("autoencoder: the newest of %s, %s", cfg.runs_dir, path)
        load_parts(path, {"vae": module.vae})
        return {"vae": str(path)}
    if isinstance(module, RobustEncoderModule):
        _load_vae(weights, module.vae)
        initialise_robust_encoder(module.robust_encoder, module.vae)
        return {"sdxl": str(weights.sdxl), "vae": weights.vae}
    if isinstance(module, SupirModule):
        conditioner, network = module.conditioner, module.network
        parts: dict[str, nn.Module] = {
            "unet": network.unet,
            "clip_l": conditioner.clip_l,
            "clip_g": conditioner.clip_g,
        }
        load_parts(weights.sdxl, parts, dtype=torch.float32, key="weights.sdxl")
        _load_vae(weights, module.vae)
        network.control.initialise_from(network.unet)
        robust = find_robust_encoder(weights.robust_encoder, cfg.runs_dir, shipped=weights.shipped)
        load_robust_encoder(robust, module.robust_encoder, module.vae)
        return {"sdxl": str(weights.sdxl), "vae": weights.vae, "robust_encoder": robust}
    raise TypeError(f"no base weights are known for {type(module).__name__}")


def find_robust_encoder(wanted: str | None, runs_dir: str, *, shipped: str | None) -> str | None:
    """Return the robust encoder's file: as wanted, else the newest run's, else the shipped one.

    Args:
        wanted: A file; "clean" for the ordinary encoder; None to look for one.
        runs_dir: Where runs are.
        shipped: The file that comes with the prior, if any.

    Returns:
        A path, or None for the ordinary encoder.

    Raises:
        FileNotFoundError: Nothing was found.
    """
    if wanted == "clean":
        log.info("robust encoder: none, the ordinary encoder (weights.robust_encoder=clean)")
        return None
    if wanted is not None:
        log.info("robust encoder: %s", wanted)
        return wanted
    newest = newest_checkpoint(runs_dir, stage="robust_encoder")
    if newest is not None:
        log.info("robust encoder: the newest of %s, %s", runs_dir, newest)
        return str(newest)
    if shipped is None:
        raise FileNotFoundError(
            f"no robust encoder: {runs_dir} holds no stage 1. Run "
            "experiment=robust_encoder first, or set weights.robust_encoder=FILE (or =clean for "
            "the ordinary encoder)"
        )
    log.info(
        "robust encoder: no stage 1 in %s, the one shipped with the prior, %s", runs_dir, shipped
    )
    return shipped


def load_robust_encoder(
    path: str | None, robust_encoder: RobustEncoder, vae: AutoencoderKL
) -> None:
    """Load a robust encoder from a stage-1 checkpoint or an official file; None takes the VAE's."""
    initialise_robust_encoder(robust_encoder, vae)
    if path is not None:
        load_parts(
            path,
            {"robust_encoder": robust_encoder},
            dtype=torch.float32,
            key="weights.robust_encoder",
        )


def initialise_robust_encoder(robust_encoder: RobustEncoder, vae: AutoencoderKL) -> None:
    """Make the robust encoder a copy of the ordinary one."""
    robust_encoder.encoder.load_state_dict(vae.encoder.state_dict())
    robust_encoder.quant_conv.load_state_dict(vae.quant_conv.state_dict())


def _load_vae(weights: DictConfig, vae: AutoencoderKL) -> None:
    key = "weights.sdxl" if weights.vae is None else "weights.vae"
    load_parts(weights.vae or weights.sdxl, {"vae": vae}, dtype=torch.float32, key=key)
