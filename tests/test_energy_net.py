import math

import pytest
import torch

from ebm_pp import EnergyNet


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
