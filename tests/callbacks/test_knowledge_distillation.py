from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fulmen.callbacks import EMAWeightAveraging, KnowledgeDistillation
from fulmen.utilities.exceptions import MisconfigurationException
from tests.callbacks.small_digits import BATCHES, Reader, SaveAt, differences, fit, seeded


@pytest.fixture
def teacher(tmp_path: Path) -> Reader:
    model: Reader = seeded(Reader, width=32, seed=5)
    fit(model, tmp_path, max_epochs=2)
    return model


class ByHand(Reader):
    """Distills without the callback."""

    def __init__(self, teacher: Reader, temperature: float, alpha: float) -> None:
        super().__init__()
        self.given: tuple[Any, float, float] = (copy.deepcopy(teacher).eval(), temperature, alpha)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        teacher, temperature, alpha = self.given
        scores = self(batch[0])
        with torch.no_grad():
            soft = (teacher(batch[0]) / temperature).softmax(1)
        logs = (scores / temperature).log_softmax(1)
        distance = temperature**2 * (soft * (soft.log() - logs)).sum(1).mean()
        loss: Tensor = (1 - alpha) * F.cross_entropy(scores, batch[1]) + alpha * distance
        return loss


def test_the_loss_is_that_of_the_paper(teacher: Reader, tmp_path: Path) -> None:
    student, by_hand = seeded(Reader), seeded(ByHand, teacher, 3.0, 0.7)
    fit(student, tmp_path, KnowledgeDistillation(teacher, temperature=3.0, alpha=0.7))
    fit(by_hand, tmp_path)

    torch.testing.assert_close(student.head.weight, by_hand.head.weight, rtol=1e-3, atol=1e-4)


def test_the_teacher_stays_as_it_is_and_is_in_no_file(teacher: Reader, tmp_path: Path) -> None:
    before = copy.deepcopy(teacher.state_dict())
    student = Reader()
    trainer = fit(
        student, tmp_path, KnowledgeDistillation(teacher), SaveAt("on_train_epoch_end", BATCHES, tmp_path / "f")
    )
    saved = torch.load(tmp_path / "f", weights_only=True)

    assert differences(teacher.state_dict(), before) == []
    assert saved["state_dict"].keys() == Reader().state_dict().keys()
    assert saved["callbacks"] == {}
    assert len(trainer.optimizers[0].param_groups[0]["params"]) == len(list(student.parameters()))
    assert all(each.requires_grad and each.grad is None for each in teacher.parameters())
    assert all(each.training for each in teacher.modules())
    assert "training_step" not in vars(student)


def test_without_a_share_the_run_is_the_same_as_alone(teacher: Reader, tmp_path: Path) -> None:
    distilled, alone = seeded(Reader), seeded(Reader)
    trainer = fit(distilled, tmp_path, KnowledgeDistillation(teacher, alpha=0.0))
    fit(alone, tmp_path)

    assert differences(distilled.state_dict(), alone.state_dict()) == []
    assert float(trainer.callback_metrics["distillation_loss"]) > 0


def test_a_resumed_run_is_the_same_run(teacher: Reader, tmp_path: Path) -> None:
    path, step = tmp_path / "saved.ckpt", BATCHES + 2
    whole, resumed = seeded(Reader), seeded(Reader, seed=99)
    fit(whole, tmp_path, KnowledgeDistillation(teacher), SaveAt("on_train_batch_end", step, path))
    fit(resumed, tmp_path, KnowledgeDistillation(teacher), ckpt_path=path)

    assert resumed.losses == whole.losses[step:]
    assert differences(resumed.state_dict(), whole.state_dict()) == []


def test_a_submodule_and_outputs_that_hold_logits_can_be_compared(teacher: Reader, tmp_path: Path) -> None:
    class Wordy(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, pictures: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(pictures)}

    class Student(Reader):
        def __init__(self) -> None:
            super().__init__()
            self.net = Wordy(nn.Linear(64, 10))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return {"loss": F.cross_entropy(self.net(batch[0])["logits"], batch[1]), "extra": 1}

    student = Student()
    trainer = fit(
        student, tmp_path, KnowledgeDistillation(Wordy(teacher), student="net", logits=lambda output: output["logits"])
    )

    assert float(trainer.callback_metrics["distillation_loss"]) > 0


def test_another_distance_can_be_given(teacher: Reader, tmp_path: Path) -> None:
    trainer = fit(Reader(), tmp_path, KnowledgeDistillation(teacher, distance=F.mse_loss))

    assert float(trainer.callback_metrics["distillation_loss"]) > 0


def test_it_works_beside_an_average_of_the_weights(teacher: Reader, tmp_path: Path) -> None:
    student = Reader()
    fit(student, tmp_path, KnowledgeDistillation(teacher), EMAWeightAveraging(decay=0.5))

    assert torch.equal(student.evaluated[-1], student.head.weight)


def test_a_step_that_does_not_call_the_model_is_an_error(teacher: Reader, tmp_path: Path) -> None:
    class Direct(Reader):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return F.cross_entropy(self.forward(batch[0]), batch[1])

    student = Direct()
    with pytest.raises(RuntimeError, match=r"`self\(...\)`.*did not call it"):
        fit(student, tmp_path, KnowledgeDistillation(teacher))
    assert "training_step" not in vars(student)


def test_outputs_of_another_shape_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"\(64, 10\).*\(64, 3\)"):
        fit(Reader(), tmp_path, KnowledgeDistillation(nn.Linear(64, 3)))


def test_a_teacher_that_is_a_part_of_the_student_is_refused(tmp_path: Path) -> None:
    student = Reader()
    with pytest.raises(MisconfigurationException, match="share 2 parameters"):
        fit(student, tmp_path, KnowledgeDistillation(student.head))


def test_manual_optimization_is_refused(teacher: Reader, tmp_path: Path) -> None:
    student = Reader()
    student.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="manual optimization"):
        fit(student, tmp_path, KnowledgeDistillation(teacher))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"teacher": "large.ckpt"}, TypeError, "got a str"),
        ({"temperature": 0}, ValueError, "temperature=0"),
        ({"temperature": "x"}, ValueError, "temperature='x'"),
        ({"alpha": 1.5}, ValueError, "alpha=1.5"),
        ({"student": 3}, TypeError, "student=3"),
        ({"logits": 3}, TypeError, "logits=3"),
        ({"distance": "mse"}, TypeError, "distance='mse'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        KnowledgeDistillation(**{"teacher": nn.Linear(1, 1), **arguments})


def test_an_unknown_part_of_the_student_is_refused(teacher: Reader, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"student='nett'.*'backbone'"):
        fit(Reader(), tmp_path, KnowledgeDistillation(teacher, student="nett"))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_the_teacher_computes_in_the_precision_of_the_run(precision: Any, teacher: Reader, tmp_path: Path) -> None:
    before = copy.deepcopy(teacher.state_dict())
    trainer = fit(Reader(), tmp_path, KnowledgeDistillation(teacher), precision=precision, max_epochs=1)

    assert trainer.callback_metrics["distillation_loss"] > 0
    assert differences(teacher.state_dict(), before) == []  # not even rounded
