import programs
import programs_invalid
import programs_with_parameters
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracle import compiled
from programs_with_parameters import VALID

from ebm_pp.density import EnergyModel
from ebm_pp.errors import DataError, ProgramError


@pytest.mark.parametrize("name", [name for name in VALID if VALID[name].warns])
def test_the_loop_is_announced(name):
    with pytest.warns(UserWarning, match=r"(?s)draw by draw.*torch\.where"):
        model = EnergyModel(VALID[name].make())
    assert model.batching == "loop"


def test_a_chosen_strategy_is_verified_too():
    with pytest.raises(ProgramError, match=r"batching='vmap' cannot evaluate.*data-dependent"):
        EnergyModel(programs_with_parameters.branch, batching="vmap")
    for program in (programs.same_size_hierarchy, programs.sum_without_dim):
        with pytest.raises(ProgramError, match="batching='plate' cannot evaluate"):
            EnergyModel(program, batching="plate")
    assert (
        EnergyModel(programs_with_parameters.branch, batching="loop").batching == "loop"
    )  # and no warning
    assert EnergyModel(programs.plate_of_vectors, batching="plate").batching == "plate"
    with pytest.raises(ProgramError, match="expected auto, vmap, plate or loop"):
        EnergyModel(programs_with_parameters.branch, batching="fast")


def test_a_plate_hidden_by_a_zero_start_is_refused():
    class SumOverDraws(programs_with_parameters.ZeroStart):
        def forward(self):
            pyro.factor("e", self.net(pyro.sample("x", programs.vector(2))).sum())

    with pytest.raises(ProgramError, match="batching='plate' cannot evaluate"):
        EnergyModel(SumOverDraws(), batching="plate")


def test_dropout_switched_on_later():
    model = EnergyModel(programs_invalid.Dropout().eval())
    x = {"x": torch.zeros(2, 2)}
    model.log_density(x)
    with pytest.raises(ProgramError, match=r"draws random numbers.*\n.*\.eval\(\)"):
        model.train().log_density(x)


def test_a_parameter_after_compilation():
    calls = []

    def program():
        calls.append(0)
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        w = pyro.param("late", torch.tensor(1.0)) if len(calls) > 1000 else 1.0
        pyro.factor("e", -w * x**2)

    model = EnergyModel(program)
    calls.extend([0] * 1000)
    with pytest.raises(ProgramError, match="'late' is new after compilation"):
        model.log_density({"x": torch.zeros(2)})


def test_a_missing_site():
    with pytest.raises(DataError, match="site 'y' is missing"):
        compiled(VALID["no_factor"]).log_density({"x": torch.zeros(2)})


WALLS = {
    "beyond the probes": lambda x: torch.where(x.abs() > 2.2, -torch.inf, 0.0),
    "nan beyond": lambda x: torch.where(x > 3.0, torch.nan, 0.0),
    "among the probes": lambda x: torch.where(x > 1.5, -torch.inf, -x),
    "a step": lambda x: (x > 2.5).float(),
}


@pytest.mark.parametrize("name", WALLS)
def test_a_factor_that_is_constant_in_the_middle_is_legal(name):
    def program():
        pyro.factor("cut", WALLS[name](pyro.sample("x", dist.Normal(0.0, 1.0))))

    x = torch.linspace(-4, 4, 33)
    energy = EnergyModel(program).energy({"x": x})
    torch.testing.assert_close(energy, -WALLS[name](x), equal_nan=True)


def test_a_factor_that_is_constant_everywhere_is_refused():
    def program():
        pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("constant", torch.tensor(3.0))

    with pytest.raises(ProgramError, match="depends on no latent site: it is 3"):
        EnergyModel(program)
