"""How data of every kind becomes batches."""

from fogline.data.facts import Facts as Facts
from fogline.data.facts import Opened as Opened
from fogline.data.intake import open_data as open_data
from fogline.data.source import Batch as Batch
from fogline.data.source import InMemory as InMemory
from fogline.data.source import MapStyle as MapStyle
from fogline.data.source import Source as Source
from fogline.data.source import Stream as Stream
