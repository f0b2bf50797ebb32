from src.data.captions import CaptionPolicy
from src.data.datamodule import RestorationDataModule
from src.data.dataset import SourceConfig
from src.data.demo import write_demo_shards
from src.data.samples import Batch, CropPolicy

__all__ = [
    "Batch",
    "CaptionPolicy",
    "CropPolicy",
    "RestorationDataModule",
    "SourceConfig",
    "write_demo_shards",
]
