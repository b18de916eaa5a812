"""The public names; `lazy_loader` reads them here, and so do mypy and editors."""

from .audit import Audit as Audit
from .audit import audit as audit
from .conversion import Report as Report
from .conversion import convert as convert
from .doctor.doctor import Diagnosis as Diagnosis
from .doctor.doctor import diagnose as diagnose
from .doctor.evidence import Golden as Golden
from .graph_plan import Translated as Translated
from .graph_plan import register_layer as register_layer
from .readers.keras_file import KerasArray as KerasArray
from .readers.keras_file import KerasFile as KerasFile
from .readers.keras_file import KerasLayer as KerasLayer
from .readers.reading import opened as opened
from .readers.reading import read_array as read_array
from .readers.reading import read_keras as read_keras
from .readers.reading import values as values
from .torch_layout import to_torch_layout as to_torch_layout
