"""What the statuses of all parts mean together: rates, shares of time waited, and whether anything moves at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocol.metrics import Values, reduce_metrics


class Observer:
    """Turns samples of every part's status into the system's metrics, named `<role>.<metric>`. No clock of its own."""

    def __init__(self) -> None:
        self.system: dict[str, float] = {}
        self._generator_s = {"idle": 0.0, "all": 0.0}

    def sample(self, statuses: Mapping[str, Sequence[Values]], now: float, num_stalled: int) -> dict[str, float]:
        """The system's metrics at `now` (seconds since the start), from the newest status of every part by role."""
        system = {
            f"{role}.{name}": value
            for role, of_role in statuses.items()
            for name, value in reduce_metrics(of_role).items()
        }
        elapsed = now - self.system.get("seconds", now)
        system |= {"seconds": now, "stalled_parts": float(num_stalled)}
        if elapsed > 0:
            made = system.get("generator.generated_tokens", 0.0) - self.system.get("generator.generated_tokens", 0.0)
            system["generator.tok_s"] = max(0.0, made / elapsed)
        if system.get("generator.generated_tokens", 0.0) > 0:  # waiting for the first work is start-up, not waiting
            busy = system.get("generator.running", 0.0) + system.get("generator.waiting", 0.0) > 0
            self._generator_s["all"] += elapsed
            self._generator_s["idle"] += 0.0 if busy else elapsed
            system["generator.wait_share"] = self._generator_s["idle"] / (self._generator_s["all"] or 1.0)
        self.system = system
        return system
