import pytest
import torch
from torch import nn

from tests.train.tiny import BrightOrDark
from wsfast.data import SyntheticDefects
from wsfast.models import SmallVGG
from wsfast.train import TrainedClassifier, evaluate_classifier, train_classifier


def small_model():
    torch.manual_seed(5)
    return SmallVGG(channels=(4, 8))


def test_learns_what_the_labels_say():
    trained = train_classifier(
        BrightOrDark(64), model=small_model(), epochs=4, batch_size=8, progress=False
    )
    assert evaluate_classifier(trained, BrightOrDark(40))["accuracy"] > 0.95
    assert len(trained.history) == 4
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    assert not trained.model.training


def weights(trained):
    return torch.cat([value.flatten().double() for value in trained.model.state_dict().values()])


def test_a_seed_fixes_the_result_and_leaves_the_global_state_alone():
    data = SyntheticDefects(8, size=(32, 16))
    settings = {"epochs": 1, "batch_size": 4, "progress": False}
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = train_classifier(data, seed=3, **settings)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(weights(train_classifier(data, seed=3, **settings)), weights(first))
    assert not torch.equal(weights(train_classifier(data, seed=4, **settings)), weights(first))


def test_masks_are_never_looked_at():
    class Masked(BrightOrDark):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(mask=torch.ones(16, 16, dtype=torch.bool))

    runs = [
        train_classifier(data, model=small_model(), epochs=1, batch_size=4, progress=False)
        for data in (BrightOrDark(8), Masked(8))
    ]
    assert torch.equal(weights(runs[0]), weights(runs[1]))


def test_images_are_normalised_per_channel():
    data = BrightOrDark(32, channels=3)
    trained = train_classifier(data, epochs=1, progress=False)
    values = trained.normalize(
        torch.stack([sample.image for sample in map(data.__getitem__, range(32))])
    )
    assert values.dtype == torch.float32
    assert values.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert values.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=1e-2)


def test_rare_defects_are_seen_as_often_as_good_images():
    class Counting(BrightOrDark):
        def __init__(self):
            super().__init__(20)
            self.labels = (torch.arange(20) == 0).long()
            self.seen = []

        def __getitem__(self, index):
            self.seen.append(int(self.labels[index]))
            return super().__getitem__(index)

    data = Counting()
    train_classifier(data, model=small_model(), epochs=3, batch_size=4, progress=False)
    statistics_pass = 20
    assert data.seen[statistics_pass:].count(1) == data.seen[statistics_pass:].count(0) == 30


class Always(nn.Module):
    def __init__(self, label):
        super().__init__()
        self.logits = nn.Parameter(nn.functional.one_hot(torch.tensor(label), 2).float())

    def forward(self, images):
        return self.logits.expand(len(images), 2)


def test_balanced_accuracy_sees_through_a_model_that_always_says_good():
    data = SyntheticDefects(20, size=(16, 16), defect_rate=0.1)
    scores = evaluate_classifier(TrainedClassifier(Always(0), [0.5], [0.1], []), data, batch_size=7)
    assert scores == pytest.approx({"accuracy": 0.9, "balanced_accuracy": 0.5})


def test_evaluation_leaves_the_mode_as_it_was():
    model = small_model().train()
    evaluate_classifier(TrainedClassifier(model, [0.5], [0.1], []), BrightOrDark(4))
    assert model.training


def test_a_diverging_run_stops_with_advice():
    with pytest.raises(RuntimeError, match="lower learning_rate"):
        train_classifier(
            BrightOrDark(16), epochs=5, batch_size=4, learning_rate=1e30, progress=False
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be between 1"),
        ({"batch_size": 1}, "batch_size must be between 2"),
    ],
)
def test_bad_settings_give_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=rf"^wsfast\.train_classifier: {message}"):
        train_classifier(BrightOrDark(4), **settings)


def test_a_data_set_needs_images():
    with pytest.raises(ValueError, match="dataset must be at least 2 images, got 1"):
        train_classifier(BrightOrDark(1))


def test_the_bar_counts_images(capsys):
    train_classifier(BrightOrDark(8), model=small_model(), epochs=2, batch_size=4)
    line = capsys.readouterr().err
    assert "16/16" in line
    assert "image/s" in line
