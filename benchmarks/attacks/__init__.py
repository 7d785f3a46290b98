"""Ways to a pass without solving the task, each as the patch that an agent would leave behind. None may be rewarded.

Every one knows Longhaul's source; what it must know besides is in `needs`. Open `base.py` first.
"""

from benchmarks.attacks.base import Attack, attack_patch
from benchmarks.attacks.known import KNOWN
from benchmarks.attacks.language import LANGUAGE
from benchmarks.attacks.objects import OBJECTS
from benchmarks.attacks.outcomes import OUTCOMES
from benchmarks.attacks.places import PLACES
from benchmarks.attacks.runners import RUNNERS
from benchmarks.attacks.surroundings import SURROUNDINGS
from benchmarks.attacks.tells import TELLS

ATTACKS: tuple[Attack, ...] = (*KNOWN, *OUTCOMES, *OBJECTS, *LANGUAGE, *RUNNERS, *PLACES, *SURROUNDINGS, *TELLS)

__all__ = ["ATTACKS", "Attack", "attack_patch"]
