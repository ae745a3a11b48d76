"""The server of `python -m janus_core serve` on Ray Serve: replicas, autoscaling, one address.

    JANUS_MODELS=Janus-Pro-7B=/models/Janus-Pro-7B serve run deploy.ray_serve:app

Environment (docs/serving.md): JANUS_MODELS is a list of [NAME=]PATH separated by commas; JANUS_VAE, JANUS_API_KEY,
JANUS_DEVICE, JANUS_DTYPE, JANUS_BATCH_SIZE, JANUS_MIN_REPLICAS, JANUS_MAX_REPLICAS, JANUS_GPUS_PER_REPLICA and
JANUS_CPUS_PER_REPLICA are optional.
"""

import os

from ray import serve


def number(name: str, default: float) -> float:
    return float(os.environ.get(name, default))


def build():
    """The application of a replica, with models of its own."""
    from janus_core import load
    from janus_core.cli_options import DTYPES
    from janus_core.errors import JanusError
    from janus_core.serve.app import ServerSettings, create_app
    from janus_core.serve.cli import load_models

    names = [name.strip() for name in os.environ["JANUS_MODELS"].split(",")]
    dtype = os.environ.get("JANUS_DTYPE")
    if dtype not in (None, *DTYPES):
        raise JanusError(f"JANUS_DTYPE is {dtype!r}, it must be one of {', '.join(DTYPES)}.")
    settings = {"device": os.environ.get("JANUS_DEVICE"), "dtype": DTYPES.get(dtype)}
    size = int(number("JANUS_BATCH_SIZE", 0)) or None
    models = load_models(names, os.environ.get("JANUS_VAE"), size, load, **settings)
    return create_app(models, ServerSettings(api_key=os.environ.get("JANUS_API_KEY")))


gpus = number("JANUS_GPUS_PER_REPLICA", 0 if os.environ.get("JANUS_DEVICE") == "cpu" else 1)
deployment = serve.deployment(
    name="janus",
    max_ongoing_requests=int(number("JANUS_ONGOING_REQUESTS", 128)),  # waiting requests fill the batches
    autoscaling_config={
        "min_replicas": int(number("JANUS_MIN_REPLICAS", 1)),
        "max_replicas": int(number("JANUS_MAX_REPLICAS", 1)),
        "target_ongoing_requests": number("JANUS_TARGET_REQUESTS", 16),
    },
    ray_actor_options={"num_gpus": gpus, "num_cpus": number("JANUS_CPUS_PER_REPLICA", 1)},
    graceful_shutdown_timeout_s=20,
)
app = deployment(serve.ingress(build)()).bind()
