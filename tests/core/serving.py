"""A server on a free port of this machine, in a thread of the tests."""

import contextlib
import socket
import threading
import time

import uvicorn

from janus_core.serve.app import ServerSettings, create_app
from janus_core.serve.work import Model


@contextlib.contextmanager
def serving(pipe, batch_size: int = 4, name: str = "janus", **settings):
    """Serves a pipeline; gives (address, the Server behind the application)."""
    app = create_app([Model(name, pipe, batch_size)], ServerSettings(**settings))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.server
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()
