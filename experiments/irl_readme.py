"""The README's example of learning a cost: `python -m experiments.irl_readme`."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ebm_pp
from ebm_pp.plots_trajectory import plot_trajectories
from experiments.table import RESULTS
from models import linear_quadratic as lq

world = lq.imitation()  # an expert known exactly: true weights 1, .2 and .5
rows = lq.draws(world, lq.solve(world), 100, seed=0)
demonstrations = {name: value.float() for name, value in rows.items()}


def step(states, actions):  # (n, 2), (n, 1) -> (n, 2); a distribution if the world is noisy
    return states @ world.A.T.float() + actions @ world.B.T.float()


start = dist.Normal(torch.zeros(2), 1.0).to_event(1)
dynamics = ebm_pp.Dynamics(start, step, ebm_pp.Space.real(1))


class Cost(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_weights = nn.Parameter(torch.zeros(3))

    def forward(self):
        w = self.log_weights.exp()
        tau = ebm_pp.trajectory(dynamics, horizon := 30)  # the sites states and actions
        with pyro.plate("time", horizon):
            pyro.factor("position", -w[0] * tau.states[:-1, 0] ** 2 / 2)
            pyro.factor("speed", -w[1] * tau.states[:-1, 1] ** 2 / 2)
            pyro.factor("effort", -w[2] * tau.actions[:, 0] ** 2 / 2)
        pyro.factor("end", -tau.states[-1] @ world.Q_T.float() @ tau.states[-1] / 2)


def main() -> None:
    torch.set_num_threads(1)
    model = ebm_pp.EnergyModel(Cost())
    fit = ebm_pp.fit(model, demonstrations)
    print(fit)
    print(model.program.log_weights.exp())
    print(ebm_pp.diagnose(fit, demonstrations))
    picture = plot_trajectories(fit, demonstrations, names=("position", "speed"))
    picture.savefig(RESULTS / "irl_lqr.png", dpi=110)


if __name__ == "__main__":
    main()
