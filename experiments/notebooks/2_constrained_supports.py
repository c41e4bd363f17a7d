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
# # Angles, positive numbers, percentages
#
# Hourly weather at the three airports of New York in 2013: the direction of the wind is an angle,
# its speed is positive, humidity is a percentage, temperature and pressure are real numbers. We
# write one program over all five, with a few factors that have names, and then find out which of
# them are needed, and how well the data determine their weights.

# %%
import math

import pyro
import pyro.distributions as dist
import torch

import ebm_pp
from ebm_pp.plots import plot_energy_slice, plot_factors, plot_moment_gaps, plot_pairs
from models.wind import load_wind, wind_days

torch.set_num_threads(1)  # faster than many for programs of this size

# %% tags=["parameters"]
rounds = 30

# %% [markdown]
# ## Whole days
#
# The hours of a day are alike, so a row is worth less than an independent one, and a split by rows
# would put nearly the same hour on both sides. Hence days are split, not rows: every fifth day is
# the *test*, looked at once, at the end. Every tenth, the *look*, tells us on the way whether the
# program will do. The other days train.

# %%
rest, test = load_wind()  # prints what was left out of the raw readings, and why
rest_days, test_days = wind_days()
aside = rest_days % 10 == 3
train = {name: value[~aside] for name, value in rest.items()}
look = {name: value[aside] for name, value in rest.items()}
train_days, look_days = rest_days[~aside], rest_days[aside]
for name, days in (("train", train_days), ("look", look_days), ("test", test_days)):
    print(f"{name:5s} {len(days):6d} hours of {len(days.unique())} days")


# %% [markdown]
# ## The program
#
# A site's distribution is its base measure, and says where the site lives: `Circle` is flat round
# the circle, a log-normal is positive, `Uniform(0, 100)` stays inside. Nothing else has to be
# declared. Location and scale are those of the training rows.
#
# The factors are about what one would expect of weather. Each is a weight times a statistic:
#
# * `prevailing`: which directions are common. Cosines and sines of the angle and of twice the
#   angle are the same after a full turn, so that no seam appears at south.
# * `gust`: which directions are strong.
# * `front`: wind against pressure. The weight is a `tanh`, between -1 and 1: a product of two
#   standardised Gaussians can be normalised for such weights only.
# * `moist`: warm air against damp air.
#
# `damp` and `gust` can be left out, for what follows.


# %%
def mean_and_sd(values: torch.Tensor) -> tuple[float, float]:
    """Of training rows, to set and undo the scale of a site."""
    return values.mean().item(), values.std().item()


LOG_SPEED = mean_and_sd(train["speed"].log())
TEMPERATURE = mean_and_sd(train["temperature"])
PRESSURE = mean_and_sd(train["pressure"])


def weather(damp: bool = True, gust: bool = True) -> None:
    """One hour."""
    direction = pyro.sample("direction", ebm_pp.Circle())  # radians from north, clockwise
    speed = pyro.sample("speed", dist.LogNormal(*LOG_SPEED))  # knots
    humidity = pyro.sample("humidity", dist.Uniform(0.0, 100.0))  # per cent
    temperature = pyro.sample("temperature", dist.Normal(*TEMPERATURE))  # degrees C
    pressure = pyro.sample("pressure", dist.Normal(*PRESSURE))  # hPa

    s = (speed.log() - LOG_SPEED[0]) / LOG_SPEED[1]
    t = (temperature - TEMPERATURE[0]) / TEMPERATURE[1]
    p = (pressure - PRESSURE[0]) / PRESSURE[1]
    h = humidity / 100
    waves = torch.stack(
        [direction.cos(), direction.sin(), (2 * direction).cos(), (2 * direction).sin()], -1
    )

    pyro.factor("prevailing", (pyro.param("prevailing_weights", torch.zeros(4)) * waves).sum(-1))
    pyro.factor("front", pyro.param("front_weight", torch.zeros(())).tanh() * s * p)
    pyro.factor("moist", pyro.param("moist_weight", torch.zeros(())) * t * (h - 0.5))
    if gust:
        pyro.factor("gust", s * (pyro.param("gust_weights", torch.zeros(4)) * waves).sum(-1))
    if damp:
        of_damp, of_dry = pyro.param("damp_weights", torch.zeros(2))
        pyro.factor("damp", of_damp * h.log() + of_dry * (-h).log1p())


# %% [markdown]
# `EnergyModel` runs the program once and reads the sites from it. The flow works in unconstrained
# coordinates z: the logarithm of a positive number, the logit of a fraction. An angle stays an
# angle.

# %%
model = ebm_pp.EnergyModel(weather, damp=False)
z, _ = model.unconstrain(look)
for (name, site), column in zip(model.sites.items(), z.T, strict=True):
    print(f"{name:12s} {site.support!s:44s} z from {column.min():.1f} to {column.max():.1f}")

# %% [markdown]
# One hour, its direction turned by a full turn: the same point, and so the same density.

# %%
hour = {name: value[:1] for name, value in look.items()}
turned = hour | {"direction": hour["direction"] + 2 * math.pi}
print(f"{model.log_density(hour).item():.4f}, turned {model.log_density(turned).item():.4f}")

# %% [markdown]
# Rows on a boundary have no unconstrained coordinates. The library does not move them; it says
# which they are. Here is what happens if humidity is rounded to whole per cents: some hours get
# exactly 100.

# %%
rounded = look | {"humidity": look["humidity"].round()}
try:
    model.check(rounded)
except ebm_pp.DataError as error:
    print(error)

# %% [markdown]
# That is why `load_wind` undoes the rounding, by uniform jitter within the unit of rounding. A
# value that is *heaped* on the boundary (no rain at all, say) is another matter: a density can't
# hold it, and those rows belong into a program of their own.
#
# ## Fit
#
# A dozen weights do not overfit, so no held-out rows are needed to stop early. For few weights
# the likelihood itself is the better objective (`importance`), with many draws per datum (`nu`)
# and larger steps than networks can take. The generator has no warm start on the data: it would
# learn details that so simple a program does not have.

# %%
config = ebm_pp.FitConfig(
    objective="importance",
    nu=16.0,
    energy_lr=3e-2,
    generator_lr=3e-3,
    warm_start_steps=0,
    rounds=rounds,
)
first = ebm_pp.fit(model, train, config=config)
print(first)

# %% [markdown]
# ## What is missing?
#
# With `groups` only days count as independent: standard errors grow, and a difference that could
# be one odd week is not taken for a fault of the program.

# %%
report = ebm_pp.diagnose(first, look, n=8000, groups=look_days)
print(report)

# %% [markdown]
# The generator is fine, but a moment of humidity is not: the base measure is flat between 0 and
# 100, and no factor of this program is about humidity alone. All gaps, the largest on top:

# %%
plot_moment_gaps(report)

# %% [markdown]
# ## The factor that it asks for
#
# `damp` is about humidity alone, h = humidity / 100: its two weights stand at log h and at
# log(1 - h). With it the margin becomes that of a Beta distribution.

# %%
second = ebm_pp.fit(ebm_pp.EnergyModel(weather), train, config=config)
print(second)
print(ebm_pp.diagnose(second, look, n=8000, groups=look_days))

# %% [markdown]
# The gap is gone, and with it the complaint.
#
# ## What the weights are worth
#
# Each weight has a standard error, again over days. "to the maximum" is how far the likelihood's
# maximum still is; where it is small against the standard error, more rounds would change nothing
# that the data can tell. It comes from draws, so take many.

# %%
found = ebm_pp.standard_errors(second, train, n=50_000, groups=train_days)
print(found)

# %% [markdown]
# A weight within two standard errors of zero may as well be zero. Those that are not:

# %%
ratio = found.values / found.standard_errors
for name, r in zip(found.names, ratio.tolist(), strict=True):
    if abs(r) > 2:
        print(f"{name:22s} {r:+.1f} standard errors from zero")

# %% [markdown]
# Rows taken as independent would promise more than they can keep:

# %%
alone = ebm_pp.standard_errors(second, train, n=50_000)
wider = found.standard_errors / alone.standard_errors
print(f"by day {wider.min():.1f} to {wider.max():.1f} times the errors by row")

# %% [markdown]
# ## Pictures
#
# Data and draws, pair by pair; the angle's margin is a rose, with north up. The draws have the
# trends that some factor is about. The two humps of temperature, winter and summer, are in no
# factor, and so in no draw; nor is it that strong winds are dry.

# %%
draws = ebm_pp.resample(ebm_pp.importance_sample(second, 20_000, seed=0), 4000, seed=0)
plot_pairs(second.model, train, draws)

# %% [markdown]
# The energy round the circle at six hours of the look. Its shape depends on the speed: that is
# `gust`. Without it all curves would be the same.

# %%
plot_energy_slice(second.model, look, "direction")

# %% [markdown]
# What every term contributes, at data and at draws. Of a factor that has been learned the two dots
# lie together; a wide bar matters much, a narrow one little.

# %%
plot_factors(second.model, train, draws)

# %% [markdown]
# ## What a verdict does not say
#
# A healthy verdict says that the moments it looked at agree: of every site by itself, and of every
# factor that is *there*. It can't miss a factor about two sites that nobody wrote. Here is the
# verdict on the program without `gust`, whose weights we have just seen.

# %%
third = ebm_pp.fit(ebm_pp.EnergyModel(weather, gust=False), train, config=config)
print(ebm_pp.diagnose(third, look, n=8000, groups=look_days).verdict)

# %% [markdown]
# Rows that none of them was fitted to can tell, by the likelihood. `elpd_diff` is how far a
# program is behind the best, in nats over all test hours, `dse` its standard error over days.

# %%
fits = {"all factors": second, "without gust": third, "without damp": first}
table = ebm_pp.compare(fits, test, groups=test_days)
print(table.drop(columns="p").round(3).to_string())

# %%
for name, row in table.iloc[1:].iterrows():
    print(f"{name}: {row.elpd_diff / row.dse:.1f} standard errors behind")

# %% [markdown]
# Both judge `gust`, by different means: the weights by all training days, the likelihood by fewer
# days and by all that the program says of them. A factor may be clear in its weights and within
# two standard errors here; more days would tell.
#
# The verdict on the test days, for the one we keep:

# %%
print(ebm_pp.diagnose(second, test, n=8000, groups=test_days))

# %% [markdown]
# The line `log-likelihood of rows` has a number "on q": how far the program is above the generator
# that was fitted beside it. Where it is negative, the flow describes these rows better than the
# program does, and more factors, or a network beside them, could gain about as much.
# `models/wind.py` is such a program; `make demo` fits it.
