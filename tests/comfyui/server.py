"""A headless ComfyUI with this pack linked in, driven over its HTTP and websocket API."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import websocket

PACK = Path(__file__).resolve().parents[2]


def find_comfyui() -> Path | None:
    """$COMFYUI_PATH, else the ComfyUI that the pack is installed in, else ~/ComfyUI or ~/comfy/ComfyUI."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named)] if named else []
    places += [PACK.parent.parent, Path.home() / "ComfyUI", Path.home() / "comfy" / "ComfyUI"]
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


class Server:
    """One ComfyUI process with its own base folder.

    Args:
        comfyui: the ComfyUI folder.
        base: an empty folder for models, input, output and user files.
        models: {path under models/: file or folder to link there}.
        arguments: more command-line arguments.
    """

    def __init__(self, comfyui: Path, base: Path, models: dict[str, Path], arguments=()):
        self.base = base
        for folder in ("custom_nodes", "input", "output", "temp", "user", "models"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "janus").symlink_to(PACK, target_is_directory=True)
        for name, source in models.items():
            link = base / "models" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source, target_is_directory=source.is_dir())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log_path = base / "log.txt"
        command = [
            python_of(comfyui), str(comfyui / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
            "--base-directory", str(base), "--user-directory", str(base / "user"), "--temp-directory", str(base),
            "--database-url", "sqlite:///:memory:", "--disable-all-custom-nodes",
            "--whitelist-custom-nodes", "janus", "--disable-api-nodes", *arguments,
        ]  # fmt: skip
        self.log_file = self.log_path.open("w")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the models are tiny
        self.process = subprocess.Popen(
            command, stdout=self.log_file, stderr=subprocess.STDOUT, cwd=comfyui, env=environment
        )
        self.client = uuid.uuid4().hex
        self._wait_until_up()
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}", timeout=300)

    def _wait_until_up(self):
        for _ in range(240):
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended while starting:\n{self.log()[-4000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise RuntimeError(f"ComfyUI did not start:\n{self.log()[-4000:]}")

    def stop(self):
        self.socket.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log_file.close()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path, value):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(value).encode(), {"Content-Type": "application/json"}
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

    def run(self, prompt: dict, **extra) -> dict:
        """Runs a prompt and returns its outputs by node id. Raises Failed with what the user would see."""
        prompt_id = self.queue(prompt, **extra)
        for kind, data in self.events(prompt_id):
            if kind == "execution_error":
                raise Failed(data["exception_message"].strip())
            if kind == "execution_interrupted":
                raise Failed("interrupted")
        for _ in range(50):
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]["outputs"]
            time.sleep(0.05)
        raise RuntimeError("no history of a finished prompt")

    def copy_input(self, source: Path, name: str | None = None):
        """Copies a file to ComfyUI's input folder."""
        shutil.copy(source, self.base / "input" / (name or source.name))

    def file(self, entry: dict) -> Path:
        """The path of a file that an output names."""
        folder = {"output": "output", "temp": "temp", "input": "input"}[entry["type"]]
        return self.base / folder / entry["subfolder"] / entry["filename"]
