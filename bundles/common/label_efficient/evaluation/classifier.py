"""Final figures of a classifier's run: validation and test, the last epoch beside the chosen one."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from label_efficient.data.image_data import ImageData
from label_efficient.evaluation.figure_tables import show_operating_point, show_table, side_by_side
from label_efficient.evaluation.outputs import Outcome
from label_efficient.evaluation.predictions import prediction_rows
from label_efficient.evaluation.run_evaluation import RunEvaluation
from label_efficient.networks.weights import load_weights
from label_efficient.tensor_files import read_tensors

SHOWN = ("acc", "auc", "macro_f1", "balanced_accuracy", "quadratic_kappa", "positive_class",
         "sensitivity", "specificity", "precision", "ece", "n")  # fmt: skip


class ClassifierEvaluation(RunEvaluation[Outcome]):
    """Evaluates the weights of a classifier's run on validation and test; arguments as of `RunEvaluation`."""

    data: ImageData

    def __init__(self, *, data: ImageData, **kwargs: Any) -> None:
        super().__init__(data=data, task=data.task, **kwargs)

    @abstractmethod
    def look(self, split: str) -> dict[str, torch.Tensor]:
        """What the network says of a split: `logits` N x K, its own `uncertainty` (N,) if it has one, anything else."""

    @abstractmethod
    def last_weights(self, trained: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """Weights of the shipped network, out of the content of a checkpoint."""

    def loader(self, dataset: Dataset) -> DataLoader:
        """Batches of a data set (which takes lists of positions) in its order."""
        positions = range(len(dataset))  # type: ignore[arg-type]
        batches = BatchSampler(positions, self.settings["batch_size"], drop_last=False)
        return DataLoader(dataset, batch_size=None, sampler=batches)

    def outcome(self, section: str) -> Outcome:
        """What the network says of a split."""
        found = self.look(section)
        self.check_finite(found["logits"], section)
        outcome = Outcome(found["logits"], self.data.splits[section].labels, found=found)
        if "uncertainty" in found:
            outcome.uncertainty, outcome.own_uncertainty = found["uncertainty"].numpy(), True
        return outcome

    def about(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The task, and how many images are left without a label."""
        return {"task": self.data.task}, {"unlabelled": self.data.unlabelled}

    def figures(self, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
        """Figures of validation and test."""
        test = outcomes["test"]
        figures: dict[str, Any] = {"validation": self.summary(outcomes["val"]), "test": self.summary(test)}
        figures |= {f"test_{name}": value for name, value in self.by_class(test).items()}
        figures["temperature"] = self.temperature
        return figures

    def more_metrics(self, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
        """Test figures of the last epoch beside the chosen one's: the choice decides how much of a gain is left."""
        path = self.output_dir / "checkpoint.pt"
        if not path.is_file() or self.ckpt_path.parent != self.output_dir:
            return {}
        state = read_tensors(path)
        self.network.load_state_dict(self.last_weights(state))
        last = self.at_temperature(self.outcome("test"), self.temperature)
        load_weights(self.network, self.ckpt_path)
        return {"last_epoch": {"epoch": state["trainer"]["epoch"], "test": self.summary(last)}}

    def rows(self, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
        """The test images, with their labels."""
        test = outcomes["test"]
        return prediction_rows(
            files=self.data.splits["test"].files,
            classes=self.data.classes,
            probabilities=test.probabilities,
            uncertainty=test.uncertainty,
            multi_label=self.multi_label,
            labels=test.targets,
            decide=self.decision,
        )

    def show(self, metrics: Mapping[str, Any]) -> None:
        """Validation, test and the last epoch side by side; the operating point."""
        columns = {"validation": metrics["validation"], "test": metrics["test"]}
        if "last_epoch" in metrics:
            columns[f"test, last epoch ({metrics['last_epoch']['epoch']})"] = metrics["last_epoch"]["test"]
        title = f"figures of epoch {metrics['chosen_epoch']}, chosen on validation AUC"
        show_table(title, side_by_side(SHOWN, columns))
        show_operating_point(metrics)
