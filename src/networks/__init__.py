from src.networks.conditioner import Conditioner, Conditioning
from src.networks.connectors import Connector
from src.networks.control import ControlAdaptor, ControlledUNet
from src.networks.unet import UNet
from src.networks.vae import AutoencoderKL, RobustEncoder

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
