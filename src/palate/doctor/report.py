"""All checks together: findings, figures, and what the figures mean."""

from dataclasses import dataclass, field

from palate.doctor import contents, language, leaks, people, splits
from palate.doctor.findings import Check, Finding
from palate.doctor.table import Table
from palate.feedback import Feedback

_CHECKS: tuple[Check, ...] = (
    *contents.THERE,
    *splits.CHECKS,
    *leaks.CHECKS,
    *contents.CHECKS,
)
_RANK = 12  # of a fit, unless it is told another


@dataclass(frozen=True)
class Report:
    """What the doctor has to say.

    Attributes:
        findings: What is wrong, the worst first.
        figures: What was measured, by name.
        remarks: What the figures mean, one line each.
    """

    findings: list[Finding]
    figures: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Codes of the findings with which figures will be wrong."""
        return [finding.code for finding in self.findings if finding.severity == "problem"]


def examine(feedback: Feedback) -> Report:
    """Look for leaks, overlapping splits, contradictions, noise and thin data, and measure what can be.

    Example:
        >>> from palate.feedback import from_rows
        >>> row = {"user_id": "ann", "prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
        >>> examine(from_rows([row], source="rows")).figures["length_auc"]
        1.0
    """
    table = Table.of(feedback)
    names, agreement = people.noise(table)
    languages = language.languages(table)
    found = [*(check(table) for check in _CHECKS), people.noisy(names, agreement), language.foreign(languages)]
    order = ["problem", "warning", "note"]
    findings = sorted(filter(None, found), key=lambda finding: order.index(finding.severity))
    figures = {**leaks.length_alone(table), **people.raters(table), **agreement, **languages}
    return Report(findings, figures, _remarks(figures))


def diagnose(feedback: Feedback) -> list[Finding]:
    """What is wrong, the worst first: the findings of `examine`.

    Example:
        >>> from palate.feedback import from_rows
        >>> row = {"user_id": "ann", "prompt": "Hi", "completion": "Hello!", "score": 1}
        >>> [finding.code for finding in diagnose(from_rows([row, row], source="rows"))]
        ['one-user', 'duplicates']
    """
    return examine(feedback).findings


def _remarks(figures: dict[str, float]) -> list[str]:
    remarks = []
    if "length_auc" in figures:
        remarks.append(
            f"Length alone gets an AUC of {figures['length_auc']:.2f} ({figures['length_auc_per_user']:.2f} averaged "
            f"over users), and guesses {figures['length_own_accuracy']:.0%} of choices by each user's other ones."
        )
    if "raters_per_pair" in figures:
        median, shared = figures["raters_per_pair"], figures["shared_pairs"]
        start = (
            "enough that the fit can start from the matrix of shared choices"
            if median >= _RANK
            else "so the fit starts from each user's mean choice; the matrix of shared choices needs a median of the "
            f"rank, {_RANK} by default (palate collect --overlap)"
        )
        remarks.append(f"Raters per pair: median {median:g}, two or more on {shared:.0%} of pairs; {start}.")
    if "agreement_predictions" in figures:
        remarks.append(
            f"A user's choices follow from their other ones and from other people's in "
            f"{figures['agreement_predictions']:.0%} of cases (by common words, marks and length alone)."
        )
    if "not_latin" in figures:
        english = f", {figures['not_english']:.0%} likely not English" if "not_english" in figures else ""
        remarks.append(
            f"Language, by script and common words: {figures['not_latin']:.0%} not in Latin script{english}."
        )
    return remarks
