"""The peers that Palate is measured against, each in a file of its own behind one interface."""

from palate.rewards.baselines.base import Answers, Fitted, Peer
from palate.rewards.baselines.bradley_terry import BradleyTerry
from palate.rewards.baselines.lore import LoRe
from palate.rewards.baselines.neighbours import Neighbours
from palate.rewards.baselines.pal import PAL
from palate.rewards.baselines.per_user import PerUser
from palate.rewards.baselines.pref import PReF
from palate.rewards.baselines.vpl import VPL

PEERS: tuple[type[Peer], ...] = (BradleyTerry, PerUser, Neighbours, PReF, VPL, PAL, LoRe)
"""All of them, the plainest first."""

__all__ = ["PAL", "PEERS", "VPL", "Answers", "BradleyTerry", "Fitted", "LoRe", "Neighbours", "PReF", "Peer", "PerUser"]
