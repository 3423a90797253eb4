"""W&B without a network: what it wrote, read by its own reader; and as much of its server as `wandb sweep` and `wandb
agent` ask of it, a grid's settings handed out one by one."""

import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

OPERATION = re.compile(r"\s*(?:query|mutation)\s+(\w+)")
ID = "sweep1"


def inspected(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's .wandb file."""
    wandb = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    said = subprocess.run(wandb, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


class SweepServer(ThreadingHTTPServer):
    """Answers W&B's GraphQL queries. A sweep ends after its first `runs` settings."""

    daemon_threads = True

    def __init__(self, runs: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs, self.definition = runs, ""
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.handed_out: list[dict[str, Any]] = []

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        name = {"name": ID, "project": {"name": "mine", "entity": {"name": "us"}}}
        if operation == "Viewer":
            return {"viewer": {"id": "1", "entity": "us", "username": "us", "flags": "{}", "teams": {"edges": []}}}
        if operation == "UpsertSweep":
            self.definition = variables["config"]
            return {"upsertSweep": {"sweep": {"id": ID, **name}, "configValidationWarnings": []}}
        if operation == "SweepWithRuns":
            sweep = {"id": ID, "name": ID, "state": "RUNNING", "config": self.definition, "runs": {"edges": []}}
            return {"project": {"sweep": {"method": "grid", "description": "", "createdAt": "", **sweep}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "agent1"}}}
        if operation == "Heartbeat":
            commands = [] if json.loads(variables["runState"]) else [self.next()]
            return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(commands)}}
        return {}

    def next(self) -> dict[str, Any]:
        """The command that runs the grid's next setting, or the one that ends the agent."""
        definition = yaml.safe_load(self.definition)
        parameters = {key: entry["values"] for key, entry in definition["parameters"].items()}
        number = len(self.handed_out)
        if number == self.runs:
            return {"type": "exit"}
        values = next(itertools.islice(itertools.product(*parameters.values()), number, None))
        arguments = {key: {"value": value} for key, value in zip(parameters, values, strict=True)}
        self.handed_out.append({"run_id": f"agents-{number}", "args": arguments})
        return {"type": "run", "program": definition["program"], **self.handed_out[-1]}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            match = OPERATION.match(asked["query"])
            assert match
            answer = {"data": self.server.answer(match[1], asked.get("variables") or {})}  # type: ignore[attr-defined]
        said = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@contextmanager
def sweep_server(runs: int) -> Iterator[SweepServer]:
    with SweepServer(runs) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
