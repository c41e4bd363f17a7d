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
# # Your own data
#
# From a CSV file to a fit that has been checked, saved and used, with few hundred rows.
#
# The file stands for yours. It is written here from a table that comes with scikit-learn
# (`pip install scikit-learn`): sizes and shapes of cell nuclei in 569 images of breast tissue,
# a copy of UCI's Breast Cancer Wisconsin (Diagnostic) data by Wolberg, Street and Mangasarian.

# %%
import shutil
import tempfile
from pathlib import Path

import arviz_stats
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import xarray
from sklearn.datasets import load_breast_cancer
from torch import nn

import ebm_pp
from ebm_pp.files import write_rows
from ebm_pp.plots import plot_pairs, plot_training, plot_weights

torch.set_num_threads(1)  # faster than many for networks of this size

# %% tags=["parameters"]
rounds = 30

# %%
folder = Path(tempfile.mkdtemp())
load_breast_cancer(as_frame=True).frame.to_csv(folder / "nuclei.csv", index=False)

# %% [markdown]
# ## Read, and look
#
# From here on it is your file.

# %%
OUTLINE = ["mean smoothness", "mean compactness", "mean concavity"]
COLUMNS = ["mean radius", "mean texture", "mean symmetry", *OUTLINE]
table = pd.read_csv(folder / "nuclei.csv")[COLUMNS]
print(table.describe().loc[["count", "mean", "min", "max"]].round(3).T)

# %% [markdown]
# No gaps: every count is the same. But the least concavity is 0. A positive quantity that is
# exactly 0 was too small to be seen, and a density has no room for a heap at one value. How many?

# %%
seen = table["mean concavity"] > 0
print(f"{(~seen).sum()} of {len(table)} rows have concavity 0")

# %% [markdown]
# Few. They are left out, and the fit is then about nuclei whose concavity can be seen. Were they
# many, they would need a program of their own.
#
# ## Three parts
#
# *Train* is fitted, *held out* chooses the round, *test* is for the verdict. Shuffle first, since
# files are often sorted; but rows that go together (one patient, one day) go into the same part.

# %%
shuffled = table[seen].sample(frac=1, random_state=0)
n = len(shuffled)
parts = [shuffled[: 3 * n // 5], shuffled[3 * n // 5 : 4 * n // 5], shuffled[4 * n // 5 :]]
print([len(part) for part in parts])


# %% [markdown]
# ## Columns become sites
#
# A site is one quantity of the program, by name; its rows come first. A column is a site of shape
# (), and columns that are of one kind can be stacked into a vector: three of the outline here.


# %%
def sites(table: pd.DataFrame) -> dict[str, torch.Tensor]:
    """Rows of the table by the names of the program's sites."""
    rows = {
        "radius": table["mean radius"],  # (n,)
        "texture": table["mean texture"],
        "symmetry": table["mean symmetry"],
        "outline": table[OUTLINE],  # (n, 3)
    }
    return {name: torch.tensor(x.to_numpy(), dtype=torch.float32) for name, x in rows.items()}


train, held_out, test = map(sites, parts)


# %% [markdown]
# ## The program
#
# The base measure says where each site lives, and roughly how it lies there:
#
# * positive numbers are log-normal, with mean and standard deviation of the logarithms;
# * `symmetry`, a relative difference and so a fraction, is a Beta of the same mean and deviation
#   (`Uniform(0, 1)` would do, but leave the energy more to learn).
#
# All of them are taken from the training rows, and kept in buffers, so that they are saved with
# the program. The energy is a network of the six numbers, standardised. Take the logarithm of what
# is positive, but the fraction as it is: it is bounded already.


# %%
def features(radius, texture, symmetry, outline):
    """Six numbers of a nucleus, or of many."""
    first = torch.stack([radius.log(), texture.log(), symmetry], -1)
    return torch.cat([first, outline.log()], -1)


class Nuclei(nn.Module):
    """A base measure scaled by `rows`, and a network as the energy."""

    def __init__(self, rows: dict[str, torch.Tensor]) -> None:
        super().__init__()
        numbers = features(**rows)
        self.register_buffer("mean", numbers.mean(0))
        self.register_buffer("sd", numbers.std(0))
        self.net = ebm_pp.EnergyNet(6, width=64)

    def forward(self) -> None:
        """One nucleus."""
        mean, sd = self.mean, self.sd
        concentration = mean[2] * (1 - mean[2]) / sd[2] ** 2 - 1
        radius = pyro.sample("radius", dist.LogNormal(mean[0], sd[0]))
        texture = pyro.sample("texture", dist.LogNormal(mean[1], sd[1]))
        symmetry = pyro.sample(
            "symmetry", dist.Beta(mean[2] * concentration, (1 - mean[2]) * concentration)
        )
        outline = pyro.sample("outline", dist.LogNormal(mean[3:], sd[3:]).to_event(1))
        u = (features(radius, texture, symmetry, outline) - mean) / sd
        pyro.factor("shape", -self.net(u))


torch.manual_seed(0)  # of the network's initial weights
model = ebm_pp.EnergyModel(Nuclei(train))

# %% [markdown]
# ## What the library checks
#
# `fit` and `diagnose` check rows before they use them, and never repair any. `model.check` does it
# by itself. Three faults, made on purpose: the zeros left in, a column under its old name, a
# missing measurement.

# %%
renamed = {"mean radius" if name == "radius" else name: x for name, x in test.items()}
missing = test | {"texture": test["texture"].where(test["texture"] > 12, torch.nan)}
for rows in (sites(table), renamed, missing):
    try:
        model.check(rows)
    except ebm_pp.DataError as error:
        print(error, end="\n\n")

# %% [markdown]
# ## Fit
#
# Two settings differ from the defaults. A batch can't be larger than the few rows there are, and a
# larger `generator_lr` lets the generator keep up with a network that changes fast.
#
# Few rows need a prior, lest the network learn them by heart. There is one by default,
# `energy_decay`, and it is the stronger the fewer the rows; and the round that is returned is the
# best on the held-out rows.

# %%
config = ebm_pp.FitConfig(batch=128, generator_lr=2e-3, rounds=rounds)
fit = ebm_pp.fit(model, train, held_out=held_out, config=config)
print(fit)

# %% [markdown]
# Round by round. As long as the energy is a worse model of the data than the generator, which
# learned from them before the first round, the generator is left alone, but for no more than half
# of the rounds. Low ESS at first is therefore no fault; at the end it would be.

# %%
plot_training(fit)

# %% [markdown]
# ## May it be used?

# %%
print(ebm_pp.diagnose(fit, test))

# %% [markdown]
# The verdict stands at the end. With few rows it has little to go by: gaps have to be large before
# they show. What cannot be hidden by few rows are the weights, a narrow peak on both sides if all
# is well.

# %%
draws = ebm_pp.importance_sample(fit, 8000, seed=0)
with torch.no_grad():
    at_test = fit.model.log_density(test) - fit.generator.log_prob(test)
plot_weights(draws.log_weights, at_test)

# %% [markdown]
# Draws of the model, resampled by their weights, beside the data. A vector gives a panel for each
# of its numbers.

# %%
new = ebm_pp.resample(draws, 1000, seed=0)
plot_pairs(fit.model, train, new)

# %% [markdown]
# ## Back into a table
#
# The way back is that of `sites`, in reverse.

# %%
columns = [new["radius"], new["texture"], new["symmetry"], *new["outline"].T]
made = pd.DataFrame({name: x.numpy() for name, x in zip(COLUMNS, columns, strict=True)})
made.to_csv(folder / "draws.csv", index=False)
print(pd.concat({"data": table[seen].mean(), "draws": made.mean()}, axis=1).round(3))

# %% [markdown]
# ## Keep the fit
#
# The file holds parameters, history and settings, no code: give `load` the same program. Mean and
# standard deviation come from the file; those of the rows passed to `Nuclei` are overwritten.

# %%
ebm_pp.save(fit, folder / "nuclei.pt")
again = ebm_pp.load(folder / "nuclei.pt", Nuclei(test))
before, after = ebm_pp.log_prob(fit, test, seed=0), ebm_pp.log_prob(again, test, seed=0)
print(f"before {before.values.mean():.6f}, after {after.values.mean():.6f} nats a row")

# %% [markdown]
# Draws, chains, weights and log-likelihoods as one tree for ArviZ, written to NetCDF and read.

# %%
tree = ebm_pp.to_datatree(fit, data=test, seed=0)
tree.to_netcdf(folder / "nuclei.nc", engine="h5netcdf")
with xarray.open_datatree(folder / "nuclei.nc", engine="h5netcdf") as read:
    print(arviz_stats.summary(read, var_names=["radius", "symmetry", "outline"], kind="stats"))

# %% [markdown]
# ## The same from the shell
#
# The commands read tables whose columns have the sites' names: `radius`, and `outline[0]`,
# `outline[1]`, `outline[2]`. `write_rows` writes such tables.

# %%
for name, rows in (("train", train), ("held_out", held_out), ("test", test)):
    write_rows(rows, folder / f"{name}.csv")
print((folder / "train.csv").read_text()[:140])

# %% [markdown]
# Put the imports, `features` and `Nuclei` into a file `nuclei.py`, and below them the program:
#
# ```
# table = pd.read_csv("train.csv")
# rows = {name: torch.tensor(table[name].to_numpy()) for name in ("radius", "texture", "symmetry")}
# outline = table[["outline[0]", "outline[1]", "outline[2]"]]
# rows["outline"] = torch.tensor(outline.to_numpy())
# program = Nuclei({name: x.float() for name, x in rows.items()})
# ```
#
# Then, in the folder of the four files,
#
# ```
# ebm-pp fit nuclei.py:program --data train.csv --held-out held_out.csv --out nuclei --batch 128
# ebm-pp diagnose nuclei --data test.csv
# ebm-pp report nuclei --data test.csv
# ebm-pp sample nuclei --n 1000 --out draws.csv
# ```
#
# The exit code is 0 if the report is healthy, 1 if it names a problem, 2 for bad input. Without
# `--held-out` a fifth of the rows is held out at random.
#
# ## What to change when ...
#
# | what you see | what to change |
# |---|---|
# | generator lags, k-hat too high, low ESS | more `rounds`, a larger `generator_lr` |
# | the same, and that did not help | a smaller network; a stronger `energy_decay` |
# | heavy tail | `fit(..., generator=FlowGenerator(model, train, base="student_t"))` |
# | dropped mode, too narrow proposal | a wider base measure; `base_share=0.5` |
# | wrong or missing factor | more `rounds`; a factor about what the report names |
# | offset far from log Z | more `rounds` |
# | held-out log-likelihood falls early | `energy_decay`; a smaller network; named factors |
# | rows that go together | split by group; `groups=` in `diagnose` and `compare` |
# | weights that mean something | named factors and `standard_errors` (notebook 2) |
# | which of two programs? | `compare` on rows that neither was fitted to |
# | categories, counts, a heap at one value | a program for each, or another tool |
# | hundreds of columns | another tool: the weights will fail, and the report say so |

# %%
shutil.rmtree(folder)  # leave this out for your own files
