"""Other libraries on the same data and the same energy network, each at its own best settings.

Energies see standardised rows z = (x - mean) / sd, for which the libraries' scales (noise, step
sizes) are meant. `PEERS` are recipes; a library that is missing raises ModuleNotFoundError.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from experiments.benchmark.measure import Look
from experiments.benchmark.problems import Problem, Rows
from experiments.benchmark.recipes import Found, Recipe, descend, held_back
from models.network import Network


class TotalEnergy(nn.Module):
    """Minus the program's log density at x = mean + sd z, up to a constant, without Pyro.

    E(z) = net(mean + sd z) + |(x - base mean) / base scale|^2 / 2.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, program: Network, rows: Rows) -> None:
        super().__init__()
        self.program = program
        self.register_buffer("loc", rows.mean(0))
        self.register_buffer("scale", rows.std(0))

    def forward(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
        """E(z), in nats."""
        x = self.loc + self.scale * z
        u, scale = x - self.program.base_mean, self.program.base_scale
        if scale.dim() == 1:
            u = u / scale
        else:
            u = torch.linalg.solve_triangular(scale, u.T, upper=False).T
        return self.program.net(x) + 0.5 * u.square().sum(-1)

    def standardise(self, x: Rows) -> Rows:
        """z of x."""
        return (x - self.loc) / self.scale


@dataclass(frozen=True)
class Settings:
    """How a peer's energy is trained.

    All the peers' examples in the plane take Adam at a constant 1e-3 on 256 rows a step; ebmkit's
    average parameters with a decay of .999. A rate that falls to 0 was better for each of them on
    two moons, and for most a larger one.

    lr: of Adam, at the start.
    batch: rows a step.
    cosine: whether the rate falls to 0 over the run.
    ema: decay of the moving average that is evaluated; 0 for the last step's parameters. .999
        is too slow for losses that take less than some 2,000 steps in the time they are given.
    clip: largest norm of the gradient.
    telling: whether the loss of rows held back says when to stop; that of CD does not, so that
        it trains on all rows to the end.
    plain: the usual network, 2 x 128 SiLU, instead of the shipped one.
    """

    lr: float = 1e-3
    batch: int = 256
    cosine: bool = True
    ema: float = 0.99
    clip: float = float("inf")
    telling: bool = True
    plain: bool = False


PLAIN = {"waves": 0, "wells": 0}

Loss = Callable[[Rows], Tensor]


def train_energy(
    make_loss: Callable[[nn.Module], tuple[Loss, list[nn.Parameter]]],
    settings: Settings,
    problem: Problem,
    seed: int,
    look: Look,
) -> Found:
    """Train a library's loss on the program's energy.

    Args:
        make_loss: from an energy of rows (n, d) to a loss of a minibatch and its own parameters.
        settings: of the optimiser.
        problem: what is fitted.
        seed: of parameters and training.
        look: see `Look`.
    """
    torch.manual_seed(seed)
    network = problem.program(**PLAIN if settings.plain else {})
    energy = TotalEnergy(network, problem.train)
    loss, own = make_loss(energy)
    averaged = copy.deepcopy(energy).requires_grad_(False)
    mean, present = list(averaged.parameters()), [p.detach() for p in energy.parameters()]

    def average() -> None:
        torch._foreach_lerp_(mean, present, 1 - settings.ema)

    def log_density(x: Rows) -> Tensor:
        return -averaged(averaged.standardise(x))

    rows, validation = problem.train, None
    if settings.telling:
        rows, validation = held_back(problem)
        validation = energy.standardise(validation)
    ending = descend(
        loss,
        [*energy.parameters(), *own],
        look,
        lambda: look(log_density),
        rows=energy.standardise(rows),
        validation=validation,
        kept=averaged,
        lr=settings.lr,
        batch=settings.batch,
        cosine=settings.cosine,
        clip=settings.clip,
        after=average,
    )
    return look(log_density, last=True) | ending


def by_dimension(energy: nn.Module, options: tuple[float, float]) -> float:
    """A setting that is tuned for the peer in the plane and beyond it; ours have one for all."""
    return options[len(energy.loc) > 2]


def ebmkit_nce(
    energy: nn.Module, noise_ratio: int = 4, noise_scale: tuple[float, float] = (1.5, 1.0)
) -> tuple[Loss, list[nn.Parameter]]:
    """Binary NCE against a normal, log Z learned.

    Documented: N(0, 1) as noise and one draw a datum. Four draws are better, and in the plane a
    normal 1.5 times as wide as the data, like the program's base; in 8 dimensions it is worse.
    """
    import ebm
    from torch.distributions import Independent, Normal

    scale = torch.full((len(energy.loc),), by_dimension(energy, noise_scale))
    noise = Independent(Normal(torch.zeros_like(scale), scale, validate_args=False), 1)
    loss = ebm.NoiseContrastiveEstimation(noise, noise_ratio)
    return lambda z: loss(energy, z).loss, list(loss.parameters())


def ebmkit_discrepancy(
    energy: nn.Module,
    sigma: tuple[float, float] = (0.3, 0.6),
    m_particles: int = 16,
    w_stable: float = 1.0,
) -> tuple[Loss, list[nn.Parameter]]:
    """Energy discrepancy, in the plane at the settings of the library's example on two moons.

    On Many-Well 8 sigma = .6 (KL .11) is better than .3 (1.67) and 1 (.21).
    """
    import ebm

    loss = ebm.EnergyDiscrepancy(by_dimension(energy, sigma), m_particles, w_stable)
    return lambda z: loss(energy, z).loss, []


def torchebm_energy(energy: nn.Module) -> nn.Module:
    """The energy in torchebm's own base class, which its losses and samplers call."""
    from torchebm.core import BaseModel

    class Energy(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = energy

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    return Energy()


def torchebm_cd(
    energy: nn.Module, step_size: float = 0.003, k_steps: int = 10, **options: Any
) -> tuple[Loss, list[nn.Parameter]]:
    """Contrastive divergence, by Langevin steps of the given size.

    Documented: steps of .1 and Adam at 1e-3, which leap out of anything as thin as the moons (PCD:
    KL 36); so do steps of .01, later. Chosen of eight settings on two moons and Many-Well 8
    (seed 1), gradients clipped at 1: for CD steps of .003 (KL .03 and 3.6), for PCD steps of .01
    and a rate of 3e-4 (.21 and 3.2).
    """
    from torchebm.losses import ContrastiveDivergence
    from torchebm.samplers import LangevinDynamics

    model = torchebm_energy(energy)
    sampler = LangevinDynamics(model, step_size=step_size, noise_scale=1.0)
    loss = ContrastiveDivergence(model=model, sampler=sampler, k_steps=k_steps, **options)
    return lambda z: loss(z)[0], []


def torchebm_sliced(energy: nn.Module, n_projections: int = 1) -> tuple[Loss, list[nn.Parameter]]:
    """Sliced score matching. Documented: 5 projections; more steps with one are better."""
    from torchebm.losses import SlicedScoreMatching

    loss = SlicedScoreMatching(model=torchebm_energy(energy), n_projections=n_projections)
    return loss, []


def torchebm_denoising(
    energy: nn.Module, noise_scale: tuple[float, float] = (0.05, 0.1)
) -> tuple[Loss, list[nn.Parameter]]:
    """Denoising score matching.

    Documented: noise of .1. On two moons .05 is better (KL .03 against .06; .02 is worse), on
    Many-Well 8 it is not (9.1 against 3.6).
    """
    from torchebm.losses import DenoisingScoreMatching

    noise = by_dimension(energy, noise_scale)
    return DenoisingScoreMatching(model=torchebm_energy(energy), noise_scale=noise), []


def zuko_flow(problem: Problem, seed: int, look: Look) -> Found:
    """Zuko's documented neural spline flow by maximum likelihood, on standardised rows.

    NSF(transforms=3, hidden_features=[128] * 3) and Adam at 1e-3 are its README's.
    """
    import zuko  # switches validation off in this process

    torch.distributions.Distribution.set_default_validate_args(True)
    torch.manual_seed(seed)
    train, validation = held_back(problem)
    loc, scale = train.mean(0), train.std(0)
    flow = zuko.flows.NSF(problem.dim, transforms=3, hidden_features=[128] * 3)

    def log_prob(x: Rows) -> Tensor:
        return flow().log_prob((x - loc) / scale) - scale.log().sum()

    ending = descend(
        lambda x: -log_prob(x).mean(),
        list(flow.parameters()),
        look,
        lambda: look(log_prob, normalised=True),
        rows=train,
        validation=validation,
        kept=flow,
        lr=1e-3,
        batch=256,
        clip=5.0,
    )
    return look(log_prob, normalised=True, last=True) | ending


Maker = Callable[[nn.Module], tuple[Loss, list[nn.Parameter]]]
QUICK_PLAIN = Settings(lr=5e-3, plain=True)
QUICK, CHAINS = Settings(lr=5e-3), Settings(clip=1.0, telling=False)
LOSSES: dict[str, tuple[Maker, Settings]] = {
    "ebmkit NCE": (ebmkit_nce, QUICK),
    "ebmkit NCE, plain network": (ebmkit_nce, QUICK_PLAIN),
    "ebmkit energy discrepancy": (ebmkit_discrepancy, QUICK),
    "torchebm CD": (torchebm_cd, CHAINS),
    "torchebm PCD": (
        partial(torchebm_cd, step_size=0.01, persistent=True, buffer_size=8192),
        replace(CHAINS, lr=3e-4),
    ),
    "torchebm sliced score matching": (torchebm_sliced, Settings(lr=3e-3)),
    "torchebm denoising score matching": (torchebm_denoising, QUICK),
}
PEERS: dict[str, Recipe] = {
    **{name: partial(train_energy, maker, how) for name, (maker, how) in LOSSES.items()},
    "zuko flow alone": zuko_flow,
}
