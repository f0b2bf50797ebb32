from open_supir.evaluation.benchmark import run_benchmark
from open_supir.evaluation.metrics import METRICS, check_weights
from open_supir.evaluation.protocols import Protocol, load_samples
from open_supir.evaluation.records import read_records
from open_supir.evaluation.report import write_report
from open_supir.evaluation.samples import BrokenSample

__all__ = [
    "METRICS",
    "BrokenSample",
    "Protocol",
    "check_weights",
    "load_samples",
    "read_records",
    "run_benchmark",
    "write_report",
]
