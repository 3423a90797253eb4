"""Files of weights and of training states, read only where every bit is as it was written."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from ln.suite.errors import Mistake

# What the optimizers in use keep for each weight.
LIKE_PARAMETERS = {
    *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "momentum_buffer"),
    *("mean", "square"),
}


def load_whole(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The dict that torch.save wrote to `path`, its tensors on `device`.

    Raises:
        Mistake: the file is not there, cut short or not what was written.
    """
    try:
        # torch.load does not look at the checksums that its archives carry, so a flipped bit would change a weight.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} does not match its checksum")
        found = torch.load(path, map_location=device, weights_only=True)
        if not isinstance(found, dict):
            raise TypeError(f"it holds a {type(found).__name__}")
    except Exception as error:  # a damaged file fails in many ways, all of which mean: not this one
        said = str(error).splitlines()
        raise Mistake(f"{path} cannot be read ({said[0] if said else type(error).__name__})") from error
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on with an optimizer's state wherever it was saved: how the update is carried out is this device's affair.

    Raises:
        ValueError: the state is of other parameters.
    """
    groups = []
    for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        # fused, foreach and capturable choose an implementation; with those of another device it would refuse.
        here = {key: own[key] for key in ("capturable", "fused", "foreach") if key in own}
        groups.append({**saved, **here})
    optimizer.load_state_dict({**state, "param_groups": groups})
    for group in optimizer.param_groups:
        counts_on_device = group.get("capturable") or group.get("fused")
        for parameter in group["params"]:
            kept = optimizer.state.get(parameter, {})
            if torch.is_tensor(kept.get("step")):
                kept["step"] = kept["step"].to(parameter.device if counts_on_device else "cpu")
            for name in LIKE_PARAMETERS & kept.keys():
                if torch.is_tensor(kept[name]) and kept[name].shape != parameter.shape:
                    raise ValueError(f"{name} is {tuple(kept[name].shape)} for weights of {tuple(parameter.shape)}")
