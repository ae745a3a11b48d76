"""Benchmarks, one command each: `python -m benchmarks.<name> --help`. Their results are in results/."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DEMO = ROOT / "demo"
AR, FLOW, VAE = DEMO / "janus-pro-demo", DEMO / "janusflow-demo", DEMO / "vae" / "janusflow-demo-vae.safetensors"
