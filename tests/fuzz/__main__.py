"""python -m tests.fuzz: exit status 1 if a case failed, or a fault was not found."""

import argparse
import sys
import time

from .faults import FAULTS
from .runner import AREAS, fuzz


def find_faults(seed: str, seconds: float) -> bool:
    """Puts each fault back in turn and prints how it was found; whether all were."""
    found_all = True
    for name, function in FAULTS.items():
        began = time.monotonic()
        report = fuzz(seed, seconds, fault=name, stop_at_failure=True)
        print(f"{name}: {function.__doc__}")
        if report.failures:
            case, answer = report.failures[0]
            print(
                f"    found after {report.cases} cases, {time.monotonic() - began:.0f} s: {answer['outcome']} in {case}"
            )
            print(f"    {answer['label'][:150]}: {answer['detail'][:150]}", flush=True)
        else:
            print(f"    NOT FOUND in {report.cases} cases", flush=True)
            found_all = False
    return found_all


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--area", choices=sorted(set(AREAS)), help="only this one")
    parser.add_argument("--case", default="", metavar="AREA/NUMBER", help="only this one")
    parser.add_argument("--fault", default="", choices=["", *FAULTS], help="put this fault back first")
    parser.add_argument("--faults", action="store_true", help="put back each fault in turn, and find it")
    args = parser.parse_args()
    if args.faults:
        return not find_faults(args.seed, args.seconds)
    report = fuzz(args.seed, args.seconds, (args.area,) if args.area else AREAS, args.fault, args.case)
    print(report.text())
    return bool(report.failures)


if __name__ == "__main__":
    sys.exit(main())
