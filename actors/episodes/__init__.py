"""Many episodes in one process: leases, sandboxes, judgement, records. Open `sandbox_actor.py` first."""
