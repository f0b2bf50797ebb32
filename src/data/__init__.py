from src.data.captions import CaptionPolicy
from src.data.dataset import SourceConfig
from src.data.demo import write_demo_shards
from src.data.samples import Batch, CropPolicy

# The data module is not among them: it brings Lightning, which costs seconds of every process that
# only reads or writes shards.
__all__ = [
    "Batch",
    "CaptionPolicy",
    "CropPolicy",
    "SourceConfig",
    "write_demo_shards",
]
