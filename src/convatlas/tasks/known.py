"""The tasks of convatlas; importing this module registers them."""

from convatlas.tasks.classification.multilabel import MultilabelClassification
from convatlas.tasks.classification.single_label import Classification
from convatlas.tasks.task import TASKS, check_loss, known_losses

__all__ = ["TASKS", "Classification", "MultilabelClassification", "check_loss", "known_losses"]
