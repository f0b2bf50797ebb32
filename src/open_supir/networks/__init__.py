from open_supir.networks.conditioner import Conditioner, Conditioning
from open_supir.networks.connectors import Connector
from open_supir.networks.control import ControlAdaptor, ControlledUNet
from open_supir.networks.unet import UNet
from open_supir.networks.vae import AutoencoderKL, RobustEncoder

__all__ = [
    "AutoencoderKL",
    "Conditioner",
    "Conditioning",
    "Connector",
    "ControlAdaptor",
    "ControlledUNet",
    "RobustEncoder",
    "UNet",
]
