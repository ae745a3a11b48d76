"""ComfyUI over its HTTP and websocket API: a running one, or one that is started here with this pack linked in."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import websocket

from . import ROOT


def find_comfyui() -> Path | None:
    """$COMFYUI_PATH, else the ComfyUI that the pack is installed in, else ~/ComfyUI or ~/comfy/ComfyUI."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named)] if named else []
    places += [ROOT.parent.parent, Path.home() / "ComfyUI", Path.home() / "comfy" / "ComfyUI"]
    for place in places:
        if (place / "main.py").is_file() and (place / "comfy" / "sd.py").is_file():
            return place
    return None


def python_of(comfyui: Path) -> str:
    """$COMFYUI_PYTHON, else a virtual environment in ComfyUI's folder, else this Python."""
    if os.environ.get("COMFYUI_PYTHON"):
        return os.environ["COMFYUI_PYTHON"]
    for venv in ("venv", ".venv"):
        for executable in ("bin/python", "Scripts/python.exe"):
            if (comfyui / venv / executable).is_file():
                return str(comfyui / venv / executable)
    return sys.executable


class Failed(Exception):
    """A prompt was refused or ended in an error; `message` is what the user sees."""

    def __init__(self, message):
        super().__init__(message)
        self.message = message


@dataclass
class Span:
    """When a node ran, in seconds of time.perf_counter, as its events arrived."""

    start: float
    end: float = 0.0
    progress: list[tuple[float, int]] = field(default_factory=list)  # (time, units done) of its progress bar

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Client:
    """A running ComfyUI.

    Args:
        url: such as http://127.0.0.1:8188.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.client = uuid.uuid4().hex
        self.socket = None

    def connect(self):
        """Opens the websocket, which events come from."""
        address = urllib.parse.urlsplit(self.url)
        scheme = "wss" if address.scheme == "https" else "ws"
        self.socket = websocket.create_connection(
            f"{scheme}://{address.netloc}{address.path}/ws?clientId={self.client}", timeout=600
        )

    def stop(self):
        """Ends the connection."""
        if self.socket is not None:
            self.socket.close()

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path, value):
        request = urllib.request.Request(
            self.url + path, json.dumps(value).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise Failed(error.read().decode()) from None

    def queue(self, prompt: dict, **extra) -> str:
        """Queues an API-format prompt and returns its id. Raises Failed when it is refused."""
        return self.post("/prompt", {"prompt": prompt, "client_id": self.client, "extra_data": extra})["prompt_id"]

    def events(self, prompt_id: str):
        """(type, data) of a prompt's events as they come, previews as ("preview", bytes), until it ends."""
        while True:
            message = self.socket.recv()
            if isinstance(message, bytes):
                yield "preview", message
                continue
            message = json.loads(message)
            kind, data = message["type"], message["data"]
            if data.get("prompt_id", prompt_id) != prompt_id:
                continue
            yield kind, data
            if kind in ("execution_success", "execution_error", "execution_interrupted"):
                return

    def successful_events(self, prompt_id: str):
        """As `events`. Raises Failed with what the user would see when the prompt fails."""
        for kind, data in self.events(prompt_id):
            if kind == "execution_error":
                raise Failed(data["exception_message"].strip())
            if kind == "execution_interrupted":
                raise Failed("interrupted")
            yield kind, data

    def run(self, prompt: dict, **extra) -> dict:
        """Runs a prompt and returns its outputs by node id. Raises Failed with what the user would see."""
        prompt_id = self.queue(prompt, **extra)
        for _ in self.successful_events(prompt_id):
            pass
        for _ in range(50):
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]["outputs"]
            time.sleep(0.05)
        raise RuntimeError("no history of a finished prompt")

    def spans(self, prompt: dict) -> dict[str, Span]:
        """Runs a prompt and returns when each node ran, by node id; those whose outputs were cached did not.

        Raises:
            Failed: the prompt was refused or ended in an error.
        """
        spans, current = {}, None
        for kind, data in self.successful_events(self.queue(prompt)):
            now = time.perf_counter()
            if kind == "progress" and data["node"] in spans:
                spans[data["node"]].progress.append((now, data["value"]))
            if kind in ("executing", "execution_success"):
                if current is not None:
                    current.end = now
                node = data.get("node")
                current = None if node is None else spans.setdefault(node, Span(now))
        return spans


class Server(Client):
    """One ComfyUI process with its own base folder.

    Args:
        comfyui: the ComfyUI folder.
        base: an empty folder for models, input, output and user files.
        models: {path under models/: file or folder to link there}.
        arguments: more command-line arguments.
        threads: CPU threads of torch; None leaves the choice to torch.
    """

    def __init__(self, comfyui: Path, base: Path, models: dict[str, Path], arguments=(), threads: int | None = None):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{port}")
        self.port, self.base, self.log_path = port, base, base / "log.txt"
        for folder in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "janus").symlink_to(ROOT, target_is_directory=True)
        for name, source in models.items():
            link = base / "models" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source, target_is_directory=source.is_dir())
        command = [
            python_of(comfyui), str(comfyui / "main.py"), "--listen", "127.0.0.1", "--port", str(port),
            "--base-directory", str(base), "--user-directory", str(base / "user"), "--temp-directory", str(base),
            "--database-url", "sqlite:///:memory:", "--disable-all-custom-nodes",
            "--whitelist-custom-nodes", "janus", "--disable-api-nodes", *arguments,
        ]  # fmt: skip
        environment = dict(os.environ) if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.log_file = self.log_path.open("w")
        self.process = subprocess.Popen(
            command, stdout=self.log_file, stderr=subprocess.STDOUT, cwd=comfyui, env=environment
        )
        try:
            self._wait_until_up()
            self.connect()
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self):
        for _ in range(600):  # five minutes, on a machine that does much else
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended while starting:\n{self.log()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-4000:]}")

    def stop(self):
        """Ends the process."""
        super().stop()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log_file.close()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def copy_input(self, source: Path, name: str | None = None):
        """Copies a file to ComfyUI's input folder."""
        shutil.copy(source, self.base / "input" / (name or source.name))

    def file(self, entry: dict) -> Path:
        """The path of a file that an output names."""
        folder = {"output": "output", "temp": "temp", "input": "input"}[entry["type"]]
        return self.base / folder / entry["subfolder"] / entry["filename"]
