"""The data doctor: what in a body of feedback would mislead a reward model or flatter its figures.

One file a family of checks. Nothing here fits a reward model but `palate.doctor.curve`, which is imported on its own.
"""

from palate.doctor.findings import Finding
from palate.doctor.report import Report, diagnose, examine

__all__ = ["Finding", "Report", "diagnose", "examine"]
