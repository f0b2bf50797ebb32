from open_supir.data.captions import CaptionPolicy
from open_supir.data.dataset import SourceConfig
from open_supir.data.demo import write_demo_shards
from open_supir.data.samples import Batch, CropPolicy

# The data module is left out: importing it imports Lightning, which would cost every process that
# only reads or writes shards several seconds.
__all__ = [
    "Batch",
    "CaptionPolicy",
    "CropPolicy",
    "SourceConfig",
    "write_demo_shards",
]
