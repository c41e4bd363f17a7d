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
# # A first energy model
#
# We have points in the plane and want their density, without knowing its form. An *energy model*
# says p(x) = mu(x) exp(-E(x)) / Z: a base measure mu that we choose, an energy E that we learn,
# and a constant Z that nobody can compute exactly. `fit` learns E and, beside it, a normalizing
# flow q, the *generator*, that draws from nearly the same density. Afterwards one number per draw,
# the weight p/q, corrects the draws, estimates Z and says whether the fit can be trusted.

# %%
import arviz_stats
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ebm_pp
from ebm_pp.plots import plot_moment_gaps, plot_pairs, plot_training, plot_weights
from models.planar import log_moons, moons

torch.set_num_threads(1)  # faster than many for networks of this size

# %% tags=["parameters"]
rounds = 15

# %%
train, held_out, test = moons(8192, seed=1), moons(2000, seed=2), moons(4000, seed=3)


# %% [markdown]
# ## The program
#
# One `sample` site: what a draw consists of, with its base measure. One `factor`: minus the
# energy, so that a low energy means likely. The network is the library's; any `nn.Module` will do.


# %%
class Moons(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = ebm_pp.EnergyNet(train["x"])

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.5).to_event(1))
        pyro.factor("shape", -self.net(x))


torch.manual_seed(0)
model = ebm_pp.EnergyModel(Moons())

# %% [markdown]
# ## Fitting
#
# `FitConfig.fast()` is for a first look; leave `config` out for the default, which takes three
# times as long and gets closer. The last line says how it ended, in words.

# %%
config = ebm_pp.FitConfig.fast(rounds=rounds)
fit = ebm_pp.fit(model, train, held_out=held_out, config=config)
print(fit)

# %% [markdown]
# ## Can it be trusted?
#
# `diagnose` looks at rows that were not trained on. Read the verdict first; each line above it has
# the number, what was wanted, and a word.

# %%
report = ebm_pp.diagnose(fit, test)
print(report)

# %% [markdown]
# Both sides of the weights should be one narrow peak at the same place. Data far to the right of
# all draws would be a part of the plane that the generator never visits.

# %%
draws = ebm_pp.importance_sample(fit, 8000, seed=0)
with torch.no_grad():
    at_test = model.log_density(test) - fit.generator.log_prob(test)
plot_weights(draws.log_weights, at_test)

# %% [markdown]
# The moments: by how many standard errors data and model differ.

# %%
plot_moment_gaps(report)

# %% [markdown]
# And how training went, round by round.

# %%
plot_training(fit)

# %% [markdown]
# ## Draws
#
# The generator's draws, resampled by their weights, are draws of the energy model.

# %%
x = ebm_pp.resample(draws, 4000, seed=0)
plot_pairs(model, test, x)

# %% [markdown]
# ## A normalised density, with its error
#
# log Z comes from the draws, with a standard error; so log-likelihoods have one too. Here the
# truth is known, and the mean of log p_true - log p is the Kullback-Leibler divergence in nats.

# %%
found = ebm_pp.log_prob(fit, test, n=20_000, seed=0)
gap = log_moons(test) - found.values.double()
error = (gap.var() / len(gap) + found.log_partition.standard_error**2).sqrt()
print(f"log Z = {found.log_partition}")
print(f"KL = {gap.mean():.4f} +- {error:.4f} nats")

# %% [markdown]
# ## On to ArviZ
#
# `to_datatree` puts draws, chains, weights and log-likelihoods where ArviZ looks for them.

# %%
tree = ebm_pp.to_datatree(fit, data=test, seed=0)
print(arviz_stats.summary(tree, kind="diagnostics"))

# %% [markdown]
# Next: a program with several sites and factors of its own is in `models/wind.py`; what the
# report says when something is wrong, in the README's table.
