"""The mirror of metrics.jsonl in Weights & Biases.

The files are the truth; W&B is derived from them. Whatever goes wrong there is said once and never fails a run.
"""

import netrc
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from ln.runs import Run

PROJECT = "layer-normalization"


def mode_of(request: str) -> Any:
    """`auto` is online where an API key is set, else offline."""
    if request != "auto":
        return request
    return "online" if os.environ.get("WANDB_API_KEY") or _key_in_netrc() else "offline"


def _key_in_netrc() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Mirror:
    """Sends each record of a run to W&B; does nothing when tracking is disabled."""

    def __init__(self, wandb_run: Any = None):
        self._run = wandb_run

    @classmethod
    def of(cls, run: Run) -> "Mirror":
        recipe = run.recipe
        mode = mode_of(recipe.tracking)
        if mode == "disabled":
            return cls()
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb

            wandb_run = wandb.init(
                project=PROJECT,
                dir=str(Path(recipe.results).resolve()),
                mode=mode,
                id=f"{recipe.profile}-{recipe.experiment}-{recipe.norm.name}-{recipe.seed}-{run.info['hash']}",
                resume="allow" if mode == "online" else None,
                name=f"{recipe.experiment} {recipe.norm.name} seed {recipe.seed}",
                group=f"{recipe.experiment}/{recipe.profile}",
                job_type=recipe.norm.name,
                config=run.info["identity"],
                settings=wandb.Settings(init_timeout=30, console="off", x_disable_stats=True),
            )
            wandb_run.define_metric("*", step_metric="step")
        except Exception as error:
            print(f"W&B is not available ({error}); the run goes on, its numbers are in {run.folder}/metrics.jsonl")
            return cls()
        return cls(wandb_run)

    def log(self, record: dict[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self._run.log(record)
        except Exception as error:
            print(f"W&B stopped taking records ({error}); the run goes on without it")
            self._run = None

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run is not None:
            try:
                self._run.finish(exit_code=0 if kind is None else 1)
            except Exception as failure:
                print(f"W&B could not finish ({failure}); the run itself is complete on disk")
