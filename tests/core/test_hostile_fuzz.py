"""Twenty seconds of the fuzzer (python -m tests.fuzz), and that it finds a fault that is put back."""

from tests.fuzz.faults import FAULTS
from tests.fuzz.runner import fuzz


def test_twenty_seconds_of_the_fuzzer():
    report = fuzz("ci", 20)
    assert report.cases > 20 and not report.failures, report.text()


def test_it_finds_a_fault():
    """The others are found by python -m tests.fuzz --faults."""
    report = fuzz("ci", 60, ("images",), fault="clipped_greys", stop_at_failure=True)
    assert "clipped_greys" in FAULTS and report.failures
