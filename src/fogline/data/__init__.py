"""How data of every kind becomes batches."""

from fogline.data.check import check_first_batch as check_first_batch
from fogline.data.defaults import default_loss as default_loss
from fogline.data.defaults import default_metrics as default_metrics
from fogline.data.defaults import default_model as default_model
from fogline.data.intake import Opened as Opened
from fogline.data.intake import load_encoder as load_encoder
from fogline.data.intake import open_data as open_data
from fogline.data.source import Batch as Batch
from fogline.data.source import Facts as Facts
from fogline.data.source import InMemory as InMemory
from fogline.data.source import MapStyle as MapStyle
from fogline.data.source import Source as Source
from fogline.data.source import Stream as Stream
from fogline.data.source import fingerprint as fingerprint
from fogline.data.streamed import Streamed as Streamed
