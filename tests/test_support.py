import programs
import pytest
import torch
from oracle import compiled, double
from programs_with_parameters import VALID
from pyro.distributions import constraints

from ebm_pp.circle import wrap

TRANSFORMED = [*programs.SUPPORTS, *programs.IMPROPER, *programs.UNKNOWN_TO_PYRO]
TRANSFORMED += ["plates_nested", "plate_of_simplices", "circle_vector_in_plate", "many_supports"]


@pytest.mark.parametrize("name", TRANSFORMED)
def test_round_trip(name):
    with double():
        model = compiled(VALID[name], batching="loop").double()
        z = torch.randn(20, model.dim)
        x, forward = model.constrain(z)
        again, backward = model.unconstrain(x)
    assert forward.shape == backward.shape == (20,)
    assert {k: tuple(v.shape[1:]) for k, v in x.items()} == {
        k: site.shape for k, site in model.sites.items()
    }
    z = torch.where(model.circular, wrap(z), z)
    torch.testing.assert_close(again, z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(backward, -forward, rtol=1e-8, atol=1e-8)
    model.check(x)


def coordinates(site, value):
    """The numbers of one draw that the reference measure counts."""
    kind = type(site.support)
    if kind is type(constraints.simplex):
        return value[..., :-1].flatten()
    if kind in (type(constraints.lower_cholesky), type(constraints.positive_definite)):
        return value[torch.tril_indices(*value.shape).unbind()]
    if kind in (type(constraints.corr_cholesky), type(constraints.corr_matrix)):
        return value[torch.tril_indices(*value.shape, offset=-1).unbind()]
    return value.flatten()


@pytest.mark.parametrize("name", TRANSFORMED)
def test_log_jacobian_is_autograds(name):
    with double():
        model = compiled(VALID[name], batching="loop").double()
        z = torch.randn(model.dim)

        def flat(z):
            x = model.constrain(z[None])[0]
            return torch.cat([coordinates(s, x[k][0]) for k, s in model.sites.items()])

        jacobian = torch.autograd.functional.jacobian(flat, z)
        assert jacobian.shape == (model.dim, model.dim)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(model.constrain(z[None])[1][0], expected, rtol=1e-8, atol=1e-8)


def test_small_parts_of_a_simplex_survive_single_precision():
    model = compiled(VALID["improper_simplex"])
    x = torch.tensor([[0.6, 0.4, 1e-9], [1e-9, 1.0, 1e-12]])
    z, _ = model.unconstrain({"x": x})
    exact = torch.tensor([0.6, 0.4]).log() - torch.tensor([0.4, 1e-9]).log()
    torch.testing.assert_close(z[0], exact + torch.tensor([2.0, 1.0]).log(), rtol=1e-5, atol=0)
    torch.testing.assert_close(model.constrain(z)[0]["x"], x, rtol=1e-5, atol=1e-12)
