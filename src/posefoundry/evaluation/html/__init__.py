"""Pages for people: what an evaluation found and what a gate decided, each one file that needs nothing else."""

from posefoundry.evaluation.html.decision_page import write_decision_page
from posefoundry.evaluation.html.evaluation_page import write_evaluation_page

__all__ = ["write_decision_page", "write_evaluation_page"]
