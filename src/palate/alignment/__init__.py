"""How the answer changes: candidates, best of n, guided decoding, and a taste in words."""

from palate.alignment.best_of_n import Taken, Taking, best_of_n, length_coefficient
from palate.alignment.candidates import Candidate, Known, Sampling, Source
from palate.alignment.endpoint import Endpoint
from palate.alignment.instruct import examples, instruction, with_system
from palate.alignment.strategies import Answer, Effort, Person, Personalizer

# `LocalModel`, `guided` and `ValueHead` load PyTorch: they are imported from their modules.
__all__ = [
    "Answer",
    "Candidate",
    "Effort",
    "Endpoint",
    "Known",
    "Person",
    "Personalizer",
    "Sampling",
    "Source",
    "Taken",
    "Taking",
    "best_of_n",
    "examples",
    "instruction",
    "length_coefficient",
    "with_system",
]
