from src.evaluation.benchmark import run_benchmark
from src.evaluation.metrics import METRICS, check_weights
from src.evaluation.protocols import Protocol, load_samples
from src.evaluation.records import read_records
from src.evaluation.report import write_report
from src.evaluation.samples import BrokenSample

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
