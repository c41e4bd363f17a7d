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
# # The paper in code: GAN = IRL = EBM
#
# Finn, Christiano, Abbeel and Levine (2016, arXiv:1611.03852) give a discriminator this form:
#
#     D(x) = p_theta(x) / (p_theta(x) + q(x)),   p_theta = p~ / Z,   p~ = exp(-E)
#     logit D(x) = log p~(x) - b - log q(x),     b in place of log Z
#
# With a density q of the generator that can be evaluated, they make three claims:
#
# 1. the b that is best for the discriminator estimates log Z (a GAN normalises an EBM);
# 2. the discriminator's gradient is that of maximum-entropy inverse reinforcement learning;
# 3. the generator's loss is KL(q || p_theta) (it becomes a sampler of the EBM).
#
# On the line every expectation is an integral, so each claim can be looked at, not only believed.
# `tests/test_losses.py` has the same to 1e-6, and what breaks when a sign is flipped.

# %%
import math

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import logsigmoid, softplus

import ebm_pp

torch.set_num_threads(1)  # faster than many for networks of this size

# %% tags=["parameters"]
rounds = 15

# %% [markdown]
# ## The three densities
#
# p is the law of the data, p~ the energy model with weights theta, q the generator: a Gaussian.
# None of them equals another.

# %%
x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
dx = x[1] - x[0]


def normal(loc, scale):
    return dist.Normal(torch.as_tensor(loc, dtype=torch.float64), scale).log_prob(x)


def log_density(theta):  # log p~: a base measure, and minus an energy of two factors
    return normal(0.0, 1.5) - theta[0] * x - theta[1] * torch.sin(2 * x)


def mean(f, log_law):  # E of f under a normalised law, by quadrature
    return (f * log_law.exp()).sum() * dx


log_p = torch.logaddexp(normal(-1.2, 0.7) + math.log(0.35), normal(1.0, 0.8) + math.log(0.65))
log_q = normal(0.3, 1.2)
theta = torch.tensor([0.2, 0.4], dtype=torch.float64, requires_grad=True)
log_z = (log_density(theta).exp().sum() * dx).log()

figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
with torch.no_grad():
    ax.plot(x, log_p.exp(), label="p, the data")
    ax.plot(x, (log_density(theta) - log_z).exp(), label="p_theta, the energy model")
    ax.plot(x, log_q.exp(), label="q, the generator")
ax.set(xlabel="x", ylabel="density", xlim=(-5, 5))
ax.legend(frameon=False)
figure  # noqa: B018 - a notebook shows it

# %% [markdown]
# ## Claim 1: the discriminator's b estimates log Z
#
# The loss of the discriminator as a function of b alone. At its lowest point as many data are
# taken for draws as draws for data, E_p[1 - D] = E_q[D]: Bennett's equation for a ratio of
# constants (1976). If p_theta is the law of the data, its solution is log Z exactly. If not, b is
# something else, and that is why the library reports log Z from draws, and |b - log Z| only as a
# sign of how far the game has come.


# %%
def discriminator_loss(log_tilde, b):
    a = log_tilde - b - log_q
    return mean(softplus(-a), log_p) + mean(softplus(a), log_q)


def best_b(log_tilde):  # by bisection on E_p[1 - D] - E_q[D], which rises with b
    low, high = -20.0, 20.0
    for _ in range(80):
        b = (low + high) / 2
        d = torch.sigmoid(log_tilde - b - log_q)
        low, high = (b, high) if mean(1 - d, log_p) < mean(d, log_q) else (low, b)
    return b


right = log_p + 1.5  # an energy model that is right: p_theta = p, log Z = 1.5
wrong = log_density(theta).detach()
print(f"energy right: b {best_b(right):.6f}, log Z 1.500000")
print(f"energy wrong: b {best_b(wrong):.6f}, log Z {log_z.item():.6f}")

# %%
figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
around = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64)
for log_tilde, at, label in ((right, 1.5, "energy right"), (wrong, log_z.item(), "energy wrong")):
    losses = [discriminator_loss(log_tilde, at + d).item() for d in around]
    ax.plot(around, losses, label=label)
    ax.axvline(best_b(log_tilde) - at, color="0.7", lw=1, ls="--")
ax.axhline(2 * math.log(2), color="0.7", lw=1)
ax.set(xlabel="b - log Z (nats)", ylabel="loss of the discriminator")
ax.legend(frameon=False)
figure  # noqa: B018 - a notebook shows it

# %% [markdown]
# ## Claim 2: its gradient is that of inverse reinforcement learning
#
# Maximum-entropy IRL (with trajectories for x and a cost for E) maximises the likelihood, whose
# gradient needs an expectation under p_theta; guided cost learning takes it by importance sampling
# from the mixture m = (p + q) / 2 of demonstrations and draws. Differentiating the discriminator's
# loss at the best b gives the same numbers.

# %%
b = best_b(log_density(theta).detach())
loss = discriminator_loss(log_density(theta), b)
(of_discriminator,) = torch.autograd.grad(loss, theta)

energy_slopes = torch.stack([x, torch.sin(2 * x)])  # grad E in theta
log_m = torch.logaddexp(log_p, log_q) - math.log(2)
log_m_model = torch.logaddexp(log_density(theta).detach() - b, log_q) - math.log(2)
weights = (log_density(theta).detach() - b - log_m_model).exp()
demonstrations = torch.stack([mean(slope, log_p) for slope in energy_slopes])
importance = torch.stack([mean(weights * slope, log_m) for slope in energy_slopes])

print("discriminator:       ", [f"{g:+.8f}" for g in of_discriminator.tolist()])
print(
    "IRL, half of it:   ",
    [f"{g:+.8f}" for g in (0.5 * 2 * (demonstrations - importance)).tolist()],
)

# %% [markdown]
# ## Claim 3: the generator's loss is KL(q || p_theta)
#
# Both terms that GANs use, log(1 - D) and -log D, taken together.

# %%
a = (log_density(theta) - b - log_q).detach()
generator_loss = mean(logsigmoid(-a) - logsigmoid(a), log_q)
kl = mean(log_q - (log_density(theta) - log_z).detach(), log_q)
print(f"generator's loss            {generator_loss:.8f}")
print(f"KL(q || p_theta) + b - log Z {(kl + b - log_z).item():.8f}")

# %% [markdown]
# Neither term alone would do: KL is what makes q a sampler of the model.
#
# ## And now the game
#
# The same equations with draws in place of integrals, and a flow for q. `FitConfig.finn2016()` is
# the paper to the letter: one step each in turn, 3,000 times, reverse KL, b by gradient. The
# default keeps the discriminator, solves for b, draws negatives from the base measure too and
# trains q on weighted draws.


# %%
class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(4))

    def forward(self):
        x = pyro.sample("x", dist.Normal(0.0, 1.5))
        features = torch.stack([x, x**2 / 4, torch.sin(2 * x), torch.cos(2 * x)])
        pyro.factor("energy", -(self.theta * features).sum(0))


def draw(n, seed):
    noise = torch.Generator().manual_seed(seed)
    first = torch.rand(n, generator=noise) < 0.35
    z = torch.randn(n, generator=noise)
    return {"x": torch.where(first, -1.2 + 0.7 * z, 1.0 + 0.8 * z)}


train, test = draw(8192, seed=1), draw(4000, seed=2)
torch.manual_seed(0)
model = ebm_pp.EnergyModel(Line())
config = ebm_pp.FitConfig.fast(rounds=rounds, energy_lr=2e-2)
q = ebm_pp.FlowGenerator(model, train, base="student_t")  # tails a little wider than any normal
fit = ebm_pp.fit(model, train, q, config=config)
print(ebm_pp.diagnose(fit, test, seed=0))

# %%
figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
rows = {"x": x.float()}
found = ebm_pp.log_prob(fit, rows, n=20_000, seed=0)
with torch.no_grad():
    ax.plot(x, log_p.exp(), label="p, the data's law")
    ax.plot(x, found.values.exp(), "--", label="p_theta")
    ax.plot(x, fit.generator.log_prob(rows).exp(), ":", label="q")
ax.set(xlabel="x", ylabel="density", xlim=(-5, 5))
ax.legend(frameon=False)
figure  # noqa: B018 - a notebook shows it

# %% [markdown]
# With a trajectory for x, a cost for E and a policy for q this is inverse reinforcement learning:
# the next notebook.
