# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first cost from demonstrations
#
# Someone steers a cart: 100 times, 30 steps each. We see where it was and how hard it was pushed.
# What did they care about? Their *cost* is how much a step was disliked, and a trajectory's chance
# falls as exp(-cost). (A reward, as others call it, is minus the cost.) We declare what they
# may have cared about, and learn how much.
#
# The demonstrations here come from a driver whose cost we know, so that we can look at the answer.

# %%
import pyro
import torch
from torch import nn

from ebm_pp.config import FitConfig
from ebm_pp.density import EnergyModel
from ebm_pp.diagnostics import diagnose
from ebm_pp.dynamics import Dynamics, Space
from ebm_pp.plots_trajectory import plot_trajectories
from ebm_pp.training import fit
from ebm_pp.trajectory import trajectory
from ebm_pp.trajectory_report import trajectory_report
from models import linear_quadratic as lq

torch.set_num_threads(1)  # faster than many for networks of this size

# %% tags=["parameters"]
rounds = 30

# %%
truth = lq.imitation(noise=0.0)
driver = lq.solve(truth)


def demonstrations(n: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows of the two sites of a trajectory: states (n, 31, 2) and actions (n, 30, 1)."""
    return {name: x.float() for name, x in lq.draws(truth, driver, n, seed).items()}


train, held_out = demonstrations(100, seed=1), demonstrations(200, seed=2)

# %% [markdown]
# ## The world, and the cost
#
# The world says how a trajectory starts and moves. It is the same for every cost, so it drops out
# of all that follows; it may as well be a simulator.
#
# The program declares one trajectory and its cost. Each `factor` is *minus* a cost, so that low
# cost means likely; inside the plate `time` it has one entry per step. Three weights are to be
# learned: of being away from 0, of being fast, of pushing. Where the cart ends has a cost that we
# take as known.

# %%
A, B = truth.A.float(), truth.B.float()


def step(states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """The next states; both arguments have a leading dimension of rows."""
    return states @ A.T + actions @ B.T


start = pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1)
cart = Dynamics(start, step, actions=Space.real(1))


class Driver(nn.Module):
    """What the driver may have cared about; weights are exp, so positive, and start at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.log_weights = nn.Parameter(torch.zeros(3))

    def forward(self) -> None:
        """One trajectory."""
        away, fast, push = self.log_weights.exp()
        tau = trajectory(cart, horizon=30)
        with pyro.plate("time", 30):
            pyro.factor("away", -0.5 * away * tau.states[:-1, 0] ** 2)
            pyro.factor("fast", -0.5 * fast * tau.states[:-1, 1] ** 2)
            pyro.factor("push", -0.5 * push * tau.actions[:, 0] ** 2)
        last = tau.states[-1]
        pyro.factor("end", -0.5 * last @ truth.Q_T.float() @ last)


# %% [markdown]
# ## Fit
#
# One call. Beside the cost it learns the policy that solves it, a small network that sees the
# state and the time. Few rounds suffice for three weights.

# %%
model = EnergyModel(Driver())
fitted = fit(model, train, config=FitConfig.trajectories(30, rounds=rounds))
print(fitted)

learned = fitted.model.program.log_weights.detach().exp()
known = [truth.Q[0, 0], truth.Q[1, 1], truth.R[0, 0]]
for name, value, true in zip(("away", "fast", "push"), learned, known, strict=True):
    print(f"{name}: learned {value:.2f}, true {true:.2f}")

# %% [markdown]
# A hundred demonstrations do not fix every weight equally well, and after few rounds weights still
# lean towards where they began. The next cell tells whether what is left is more than chance.
#
# ## May it be used?
#
# `diagnose` compares with demonstrations that were not fitted. Two lines matter first: the largest
# moment gap (do demonstrations and model agree on every cost, or is one wrong or missing?), and
# the policy's nats to the soft optimum (does the policy solve the cost that was learned?).

# %%
report = diagnose(fitted, held_out, n=2000)
report  # noqa: B018 - a notebook shows it as a table

# %%
print(report)

# %% [markdown]
# The numbers behind it: weights of the first steps and of all, log Z three ways, and the gap of
# every cost.

# %%
print(trajectory_report(fitted, held_out, n=2000))

# %% [markdown]
# ## One picture

# %%
plot_trajectories(fitted, held_out, names=("position", "velocity"))
