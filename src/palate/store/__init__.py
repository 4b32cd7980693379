"""What is remembered: people, their evidence, what was asked, and posteriors, in one database."""

from palate.store.records import CHOICES, Choice, StoredEvidence, StoredPosterior, StoredQuery, Tenant, User
from palate.store.repository import DEFAULT_TENANT, DEFAULT_URL, Store

__all__ = [
    "CHOICES",
    "DEFAULT_TENANT",
    "DEFAULT_URL",
    "Choice",
    "Store",
    "StoredEvidence",
    "StoredPosterior",
    "StoredQuery",
    "Tenant",
    "User",
]
