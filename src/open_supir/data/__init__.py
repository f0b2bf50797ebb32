from open_supir.data.captions import CaptionPolicy
from open_supir.data.dataset import SourceConfig
from open_supir.data.demo import write_demo_shards
from open_supir.data.samples import Batch, CropPolicy

# The data module is not among them: it brings Lightning, which costs seconds of every process that
# only reads or writes shards.
__all__ = [
    "Batch",
    "CaptionPolicy",
    "CropPolicy",
    "SourceConfig",
    "write_demo_shards",
]
