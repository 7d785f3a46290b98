"""Nothing random happens in a forward pass: the policy that is trained is the one that sampled."""

from __future__ import annotations

from torch import nn

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NOISES = ("dropout", "pdrop", "layerdrop")


def silence(model: nn.Module) -> list[str]:
    """Turn off dropout, layer dropout and Mixtral's jitter; returns the names of what was on.

    They stand in modules of their own and in numbers that attention, experts and configurations keep. Not every number
    of such a name is noise alone: PhiMoE's router reads its jitter in evaluation, too, so the self-test refuses it.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, _DROPOUTS) and module.p:
            found.append(name)
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for key, value in list(vars(holder).items()) if holder is not None else []:
                if (
                    isinstance(value, float)
                    and value
                    and (key == "jitter_noise" or any(noise in key for noise in _NOISES))
                ):
                    found.append(f"{name}.{key}".lstrip("."))
                    setattr(holder, key, 0.0)
    return found


def _is_noise(key: str) -> bool:
    return key == "jitter_noise" or any(noise in key for noise in _NOISES)
