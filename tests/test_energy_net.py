import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

from ebm_pp import DataError, EnergyModel, EnergyNet
from ebm_pp.errors import ProgramError


def rows(n=40, d=3):
    return 5 + 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("wells", [0, 1, 5])
@pytest.mark.parametrize("waves", [0, 4])
def test_against_the_formula(waves, wells):
    torch.manual_seed(0)
    x = rows().double()
    net = EnergyNet(x, width=8, waves=waves, wells=wells, curved=True)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    u = (x - x.mean(0)) / x.std(0)
    features = u
    if waves:
        phase = u @ net.waves.weight.T
        features = torch.cat([u, phase.sin(), phase.cos()], 1)
    h = net.layers(features)
    if wells:
        distance = (u[:, None] - net.centre).square() * net.log_rho.exp()
        expected = -((h - distance.sum(2) / 2).exp().mean(1)).log()
    else:
        expected = -h[:, 0]
    assert expected.std() > 0.1
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(net(x[0]), expected[0])


def test_wells_can_be_the_mixture_itself():
    net = EnergyNet(2, waves=0, wells=3, curved=True).double()
    with torch.no_grad():
        net.layers[-1].weight.zero_()
        net.layers[-1].bias.copy_(torch.tensor([0.2, 0.3, 0.5]).log())
        net.centre.copy_(torch.tensor([[-2.0, 0.0], [0.0, 1.0], [3.0, -1.0]]))
        net.log_rho.copy_(torch.tensor([[1.0, 4.0], [1.0, 1.0], [0.25, 1.0]]).log())
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=net.layers[-1].bias - _log_volume(net)),
        torch.distributions.Independent(
            torch.distributions.Normal(net.centre, (-net.log_rho / 2).exp()), 1
        ),
    )
    x = 3 * torch.randn(50, 2, dtype=torch.float64)
    constant = net(x) + law.log_prob(x)
    torch.testing.assert_close(constant, constant[:1].expand(50))


def _log_volume(net):
    """A component's normalised density is its well's height over its volume."""
    return net.log_rho.sum(1) / 2


def test_it_starts_near_its_base():
    torch.manual_seed(0)
    energy = EnergyNet(rows(1000, 20))(rows(1000, 20))
    assert energy.std() < math.sqrt(20)


def test_standardised_features_need_no_data():
    net = EnergyNet(4, width=8)
    assert torch.equal(net.loc, torch.zeros(4))
    assert net(torch.randn(2, 7, 4)).shape == (2, 7)


def holed():
    x = rows()
    x[7, 1] = math.nan
    return x


def flat():
    x = rows()
    x[:, 1] = 0.1
    return x


@pytest.mark.parametrize(
    ("make", "phrases"),
    [
        (lambda: {"x": rows()}, ["a dict with ['x']", "EnergyNet(data['x'])"]),
        (holed, ["1 of 40 rows are NaN or infinite (first: rows 7)", "drop these rows"]),
        (lambda: np.ma.masked_less(rows().numpy(), 0.0), ["are NaN or infinite", "masked"]),
        (lambda: pd.DataFrame({"a": [1, None, 3]}, dtype="Int64"), ["1 of 3 rows"]),
        (flat, ["column 1 has spread 0 over 40 rows", "constant column"]),
        (lambda: pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 3.0]}), ["column 'b' has spread 0"]),
        (lambda: rows()[:1], ["1 row; expected at least two", "d=3 alone"]),
        (lambda: rows()[:0], ["shape (0, 3)", "at least two rows"]),
        (lambda: torch.tensor(1.0), ["shape ()"]),
        (lambda: rows(8, 6).reshape(8, 2, 3), ["shape (8, 2, 3)", "reshape(len(rows), -1)"]),
        (lambda: [["a", "b"], ["c", "d"]], ["dtype <U1", "text"]),
        (lambda: rows() > 5, ["dtype bool"]),
        (lambda: [[1.0, 2.0], [1.0]], ["different lengths"]),
        (lambda: None, ["EnergyNet's rows is NoneType"]),
        (lambda: 0, ["EnergyNet's d=0", "at least 1"]),
    ],
)
def test_rows_that_can_not_be_are_named(make, phrases):
    with pytest.raises(DataError) as caught:
        EnergyNet(make())
    assert all(phrase in str(caught.value) for phrase in phrases), caught.value


@pytest.mark.parametrize("column", [torch.arange(9.0), np.arange(9), list(range(9)),
                                    pd.Series(range(9)), torch.arange(9.0)[:, None]])  # fmt: skip
def test_one_column_is_one_feature(column):
    net = EnergyNet(column)
    assert net.loc.tolist() == [4.0]
    assert net(torch.randn(5, 1)).shape == (5,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_of_a_tensor_stays_and_inputs_follow_it(dtype):
    net = EnergyNet(rows().to(dtype))
    assert net.loc.dtype == dtype
    for other in (torch.float32, torch.float64, torch.long):
        assert net(rows().to(other)).dtype == dtype


def test_a_file_of_any_size_is_read_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr("ebm_pp.energy_net.MOST_ROWS", 500)
    x = rows(20_000).double().numpy()
    np.save(tmp_path / "x.npy", x)
    net = EnergyNet(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert net.loc.dtype == torch.float32
    error = x.std(0) / math.sqrt(500)
    assert (np.abs(net.loc.numpy() - x.mean(0)) < 4 * error).all()


@pytest.mark.parametrize(
    ("d", "shape"), [(3, (5, 2)), (1, (5,)), (2, ()), (3, (3, 5)), (3, (5, 1))]
)
def test_another_number_of_features_is_named(d, shape):
    net = EnergyNet(d)
    with pytest.raises(ProgramError) as caught:
        net(torch.zeros(shape))
    assert f"got an input of shape {shape}; expected (..., {d})" in str(caught.value)


def test_a_program_that_gives_scalars_hears_of_it():
    def program(net):
        pyro.factor("f", -net(pyro.sample("x", dist.Normal(0.0, 1.0))))

    with pytest.raises(ProgramError, match=r"x\[\.\.\., None\]"):
        EnergyModel(program, EnergyNet(1))


def test_numpy_tells_the_number_of_features_too():
    assert EnergyNet(np.int64(3)).loc.shape == (3,)
