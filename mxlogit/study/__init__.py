"""Studies of engines on simulated data: errors of estimates, and calibration of posteriors."""

from mxlogit.study.attainable import attainable_errors
from mxlogit.study.calibration import Calibration, Design, simulation_based_calibration
from mxlogit.study.designs import DESIGNS, PublishedDesign, Sample, SimulatedDesign, StudyDesign
from mxlogit.study.figures import plot_seconds
from mxlogit.study.metrics import evaluate
from mxlogit.study.published import beside_published, published_results
from mxlogit.study.runner import METHODS, run_study, summarise, write_results

__all__ = [
    "DESIGNS",
    "METHODS",
    "Calibration",
    "Design",
    "PublishedDesign",
    "Sample",
    "SimulatedDesign",
    "StudyDesign",
    "attainable_errors",
    "beside_published",
    "evaluate",
    "plot_seconds",
    "published_results",
    "run_study",
    "simulation_based_calibration",
    "summarise",
    "write_results",
]
