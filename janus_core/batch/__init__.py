"""Batch runs: manifests of prompts or images, shards and clusters, resume, and the layouts of benchmarks.

A manifest (manifest.py, layouts.py) gives outputs (outputs.py); groups of them (groups.py) are run by a worker
(worker.py) in this process or on Ray (run.py, ray_engine.py) and recorded beside the output folder (records.py).
"""
