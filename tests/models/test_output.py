import pytest
import torch

from aneurysm.errors import UsageError
from aneurysm.models.output import ModelOutput, check_output, mean_of_top, start_at_prior

IMAGE = torch.zeros(2, 1, 16, 24, 32)
LOGITS = torch.zeros(2, 14)
DENSE = torch.zeros(2, 14, 2, 3, 4)


def test_the_mean_of_the_highest_cells():
    dense = torch.arange(24.0).reshape(1, 2, 2, 2, 3)
    assert mean_of_top(dense, 1).tolist() == [[11, 23]]
    assert mean_of_top(dense, 3).tolist() == [[10, 22]]


def test_the_mean_of_all_where_there_are_fewer_cells():
    assert mean_of_top(torch.arange(4.0).reshape(1, 1, 1, 2, 2), 9).tolist() == [[1.5]]


def test_the_mean_is_exact_for_half_precision():
    dense = torch.full((1, 1, 8, 8, 8), 1.0, dtype=torch.bfloat16)
    dense[0, 0, 0, 0, 0] = 2
    assert mean_of_top(dense, 512).item() == pytest.approx(513 / 512)


def test_a_layer_starts_at_its_prior():
    layer = torch.nn.Linear(8, 3)
    start_at_prior(layer, 0.05)
    torch.testing.assert_close(torch.sigmoid(layer(torch.zeros(1, 8))), torch.full((1, 3), 0.05))


def test_an_output_as_it_should_be_passes():
    vessels = torch.zeros(2, 14, 16, 24, 32)
    output = ModelOutput(LOGITS, DENSE, (8, 8, 8), (DENSE[..., :1, :1, :2],), vessels)
    assert check_output(output, IMAGE) is output
    assert check_output(ModelOutput(LOGITS), IMAGE).dense is None


@pytest.mark.parametrize(
    "output, words",
    [
        pytest.param(LOGITS, "returned Tensor", id="a tensor"),
        pytest.param(ModelOutput(LOGITS[:, :13]), "'logits' has shape .2, 13., expected .2, 14.", id="13 labels"),
        pytest.param(ModelOutput(LOGITS, DENSE), "'dense' has shape", id="no stride"),
        pytest.param(ModelOutput(LOGITS, DENSE, (8, 8, 8), (DENSE,)), r"'coarser\[0\]'", id="a level not coarser"),
        pytest.param(ModelOutput(LOGITS, coarser=(DENSE,)), "'dense' is None", id="levels of nothing"),
        pytest.param(ModelOutput(LOGITS, vessels=DENSE), "'vessels' has shape", id="a coarse vessel map"),
    ],
)
def test_an_output_as_it_should_not_be_is_told_apart(output, words):
    with pytest.raises(UsageError, match=words):
        check_output(output, IMAGE)
