"""Who likes what: base rewards, a person's posterior, the next question, and the taste in words."""

from palate.rewards.beliefs import Belief, Gaussian, Mixture
from palate.rewards.drift import Drift
from palate.rewards.explain import Explanation, StyleTaste, explain
from palate.rewards.factorization import Penalties
from palate.rewards.finetuning import Finetune
from palate.rewards.fitting import fit
from palate.rewards.guard import Guard
from palate.rewards.model import KnownAnswers, Pool, Ranked, RewardModel
from palate.rewards.posterior import Observations, laplace_posterior, predict
from palate.rewards.queries import DEFAULT_STRATEGY, STRATEGIES, choose, expected_information
from palate.rewards.ratings import RatingScale, Scales

__all__ = [
    "DEFAULT_STRATEGY",
    "STRATEGIES",
    "Belief",
    "Drift",
    "Explanation",
    "Finetune",
    "Gaussian",
    "Guard",
    "KnownAnswers",
    "Mixture",
    "Observations",
    "Penalties",
    "Pool",
    "Ranked",
    "RatingScale",
    "RewardModel",
    "Scales",
    "StyleTaste",
    "choose",
    "expected_information",
    "explain",
    "fit",
    "laplace_posterior",
    "predict",
]
