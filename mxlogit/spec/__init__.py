"""Specifications: what users ask for, checked before data are read."""

from mxlogit.spec.arguments import MIXING_NAMES, make_specification
from mxlogit.spec.columns import Columns
from mxlogit.spec.mixture import Mixture
from mxlogit.spec.names import check_names
from mxlogit.spec.network import HiddenUnits, Network
from mxlogit.spec.specification import CONSTANT_PREFIX, Specification, nest_label, product_label, within_label

__all__ = [
    "CONSTANT_PREFIX",
    "MIXING_NAMES",
    "Columns",
    "HiddenUnits",
    "Mixture",
    "Network",
    "Specification",
    "check_names",
    "make_specification",
    "nest_label",
    "product_label",
    "within_label",
]
