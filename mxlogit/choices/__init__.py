"""Choice data: reading, checking and reshaping frames."""

from mxlogit.choices.data import ChoiceData
from mxlogit.choices.ingest import FrameChoices, read_frame
from mxlogit.choices.packed import PackedChoices
from mxlogit.choices.packing import pack_choices
from mxlogit.choices.reshape import wide_to_long

__all__ = ["ChoiceData", "FrameChoices", "PackedChoices", "pack_choices", "read_frame", "wide_to_long"]
