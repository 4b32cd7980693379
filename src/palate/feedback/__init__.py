"""What people told of their taste: the records, and the files that they come in."""

from palate.feedback.files import Feedback, from_rows, read_feedback, write_jsonl
from palate.feedback.records import MIXED_FORMS, Comparison, Message, Rating, Record, Reply, Text, as_text

__all__ = [
    "MIXED_FORMS",
    "Comparison",
    "Feedback",
    "Message",
    "Rating",
    "Record",
    "Reply",
    "Text",
    "as_text",
    "from_rows",
    "read_feedback",
    "write_jsonl",
]
