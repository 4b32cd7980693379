"""What every test and doctest runs under: offline, one thread each, nothing from the home directory.

It stands at the root, not in tests/, so that `pytest src/palate/feedback.py` runs under it too.
"""

import os
import tempfile

import pytest
from hypothesis import settings

# Before numpy or torch is imported, which read these once; xdist's workers inherit them.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="Agg", TOKENIZERS_PARALLELISM="false")
os.environ.pop("PALATE_DATABASE", None)

# The same examples in every run, and no deadline that a busy machine would miss.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a cache of encodings of its own, made once and shared by the workers."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="palate-tests-")
        os.environ["PALATE_CACHE"] = folder.name
        config.add_cleanup(folder.cleanup)
