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
# # When a fit is wrong
#
# Five ways in which a fit goes wrong, each planted on purpose, and how each looks. In all of them
# something else looks fine: the loss is flat, the effective sample size is high, the moments
# agree. So don't look at one number; read the verdict of `diagnose`, then the picture that goes
# with it.
#
# | planted | what is at fault | the picture |
# |---|---|---|
# | dropped mode | the generator misses a part of the data | weights: data right of all draws |
# | narrow proposal | the generator is too narrow everywhere | before and after weighting |
# | heavy tail | the generator's tails are too light | weights: a long right tail |
# | wrong factor | the energy | moments; terms of the density |
# | leaked mass | the energy, where nobody looks | the energy's map |

# %%
from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import ebm_pp
from ebm_pp import plots
from models.planar import moons

torch.set_num_threads(1)  # faster than many for networks of this size

# %% tags=["parameters"]
rounds = 20

# %%
config = ebm_pp.FitConfig.fast(rounds=rounds, pool=4096, batch=256)


def weights(fit, rows):
    """Log weights of draws of the generator, and of rows of data."""
    draws = ebm_pp.importance_sample(fit, 4000, seed=0)
    with torch.no_grad():
        at_rows = fit.model.log_density(rows) - fit.generator.log_prob(rows)
    return draws.log_weights, at_rows


# %% [markdown]
# ## 1. A dropped mode
#
# Two equal modes. The density is given, so that only the generator learns, with the loss of the
# paper, KL(q || p), from a start on one mode. That loss never asks what q leaves out.


# %%
def two_modes():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 4.0).to_event(1))
    log_base = dist.Normal(0.0, 4.0).log_prob(x).sum()
    modes = torch.stack([dist.Normal(m, 1.0).log_prob(x).sum() for m in (-3.0, 3.0)])
    pyro.factor("modes", modes.logsumexp(0) - log_base)


torch.manual_seed(0)
model = ebm_pp.EnergyModel(two_modes)
signs = 3.0 * (2 * torch.randint(0, 2, (4000, 1)) - 1)
data = {"x": signs + torch.randn(4000, 2)}
start = ebm_pp.FlowGenerator(model, {"x": torch.randn(4000, 2) - 3})
reverse = replace(config, generator_loss="reverse_kl", base_share=0.0)
dropped = ebm_pp.fit(model, None, start, reverse)
print(ebm_pp.diagnose(dropped, data, seed=0))

# %% [markdown]
# ESS/n and k-hat of the generator's own draws are perfect: a generator that never goes somewhere
# can't miss it. The rows of data give it away. Half of them lie right of all draws, where p/q is
# larger than at any draw, and log Z is too small by log 2.

# %%
plots.plot_weights(*weights(dropped, data))

# %% [markdown]
# What helps: the default loss, which fits q to weighted draws that also come from the base
# measure, or a start that is as wide as the data.

# %%
torch.manual_seed(0)
start = ebm_pp.FlowGenerator(model, data)
mended = ebm_pp.fit(model, None, start, config)
print(ebm_pp.diagnose(mended, data, seed=0).verdict)

# %% [markdown]
# ## 2. A proposal that is too narrow
#
# The same density, and an untrained generator of half the data's spread.

# %%
narrow = replace(mended, generator=ebm_pp.FlowGenerator(model, data, scale=0.5))
print(ebm_pp.diagnose(narrow, data, seed=0))

# %% [markdown]
# Dashed are the generator's draws, solid the same draws weighted. The weights try to widen them,
# but at the modes there are few draws, and they carry everything: the solid line is ragged.

# %%
plots.plot_reweighting(model, data, ebm_pp.importance_sample(narrow, 4000, seed=0))

# %% [markdown]
# What helps: start the generator wider (`FlowGenerator(model, data, scale=1.5)`) and train longer.
# A proposal that is too wide costs draws; one that is too narrow costs the answer.
#
# ## 3. A heavy tail
#
# Student's t with two degrees of freedom, and a flow over a normal base. Flows of this kind map
# tails linearly: a normal tail stays normal.


# %%
def heavy_tailed():
    pyro.sample("x", dist.StudentT(2.0, torch.zeros(2), 1.0).to_event(1))


torch.manual_seed(0)
model = ebm_pp.EnergyModel(heavy_tailed)
data = model.sample_base(4000)
light = ebm_pp.FlowGenerator(model, data)
heavy = ebm_pp.fit(model, None, light, replace(config, base_share=0.0))
print(ebm_pp.diagnose(heavy, data, seed=0))

# %% [markdown]
# The centre is right and ESS/n is high; k-hat, the shape of the weights' tail, says that it will
# not last: the next draw may outweigh all others.

# %%
plots.plot_weights(*weights(heavy, data))

# %%
torch.manual_seed(0)
start = ebm_pp.FlowGenerator(model, data, base="student_t")
mended = ebm_pp.fit(model, None, start, config)
print(ebm_pp.diagnose(mended, data, seed=0).verdict)

# %% [markdown]
# ## 4. A wrong factor
#
# Now the generator is fine and the energy is not. The data couple two coordinates with strength
# .5; the program has that coupling fixed at .1, beside a field that is learned.


# %%
class FrozenBond(nn.Module):
    def __init__(self):
        super().__init__()
        self.field = nn.Parameter(torch.zeros(2))

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("field", (self.field * x).sum(-1))
        pyro.factor("bond", 0.1 * x[..., 0] * x[..., 1])


torch.manual_seed(0)
precision = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])
law = dist.MultivariateNormal(torch.zeros(2), precision_matrix=precision)
train, test = {"x": law.sample((4000,))}, {"x": law.sample((4000,))}
model = ebm_pp.EnergyModel(FrozenBond())
wrong = ebm_pp.fit(model, train, config=config)
report = ebm_pp.diagnose(wrong, test, seed=0)
print(report)

# %% [markdown]
# The weights are good, so draws are those of the model; it is the model that differs from the
# data. The moment of a factor is the slope of the likelihood in its weight: the gap says which
# factor to change, and its sign in which direction.

# %%
plots.plot_moment_gaps(report)

# %%
x = ebm_pp.resample(ebm_pp.importance_sample(wrong, 8000, seed=0), 4000, seed=0)
plots.plot_factors(model, test, x)

# %% [markdown]
# What helps: learn that weight. What does not: more rounds.
#
# ## 5. Leaked mass
#
# Two moons over a wide base measure, and the paper's game to the letter: the discriminator sees
# data and draws of q, nothing else. Where neither of them is, nothing holds the energy up.


# %%
class Moons(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = ebm_pp.EnergyNet(train["x"])

    def forward(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 4.0).to_event(1))
        pyro.factor("shape", -self.net(x))


train, held_out, test = moons(8192, seed=1), moons(2000, seed=2), moons(4000, seed=3)
config = ebm_pp.FitConfig.fast(rounds=rounds)
torch.manual_seed(0)
model = ebm_pp.EnergyModel(Moons())
leaking = ebm_pp.fit(model, train, config=replace(config, base_share=0.0), held_out=held_out)
print(ebm_pp.diagnose(leaking, test, seed=0))

# %% [markdown]
# Of all that the generator's draws and the data can tell, nothing is wrong. But `diagnose` draws
# from the base measure too, and finds mass where data are not. The contours show where.

# %%
plots.plot_energy_map(model, test, "x[0]", "x[1]", margin=1.0)

# %% [markdown]
# What helps: draws of the base measure among the negatives, `base_share`, which is the default.

# %%
torch.manual_seed(0)
model = ebm_pp.EnergyModel(Moons())
held = ebm_pp.fit(model, train, config=config, held_out=held_out)
print(ebm_pp.diagnose(held, test, seed=0).verdict)
plots.plot_energy_map(model, test, "x[0]", "x[1]", margin=1.0)

# %% [markdown]
# And a picture for whoever has read this far: are rows as likely as the model says that its own
# draws are? In the band, yes.

# %%
plots.plot_calibration(held, test)

# %% [markdown]
# What to do about each symptom, and about rarer ones, is in the documentation under
# *Troubleshooting*.
