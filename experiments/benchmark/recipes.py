"""What `ebm_pp` can do with a data set: its recipe, the paper's, and simpler ones beside them.

A recipe is called as `recipe(problem, seed, look)`: it trains, calls `look` when one is due, and
returns the last look with a `status`. Energies are those of `problem.program()`,
initialised after `torch.manual_seed(seed)`.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ebm_pp import EnergyModel, FitConfig, FlowGenerator, fit, training
from ebm_pp.checks import holding
from ebm_pp.density import Sites
from ebm_pp.game import Game
from ebm_pp.generator import Generator
from ebm_pp.sampling import seeded
from experiments.benchmark.measure import Look
from experiments.benchmark.problems import LogDensity, Problem, Rows

Found = dict[str, Any]
Recipe = Callable[[Problem, int, Look], Found]


CHECK_EVERY = 50  # steps


@dataclass(frozen=True)
class GaussianNoise:
    """Fixed noise with the data's mean and full covariance, as a generator that never learns."""

    law: MultivariateNormal
    has_rsample: bool = True

    def rsample_and_log_prob(self, n: int) -> tuple[Sites, Tensor]:
        x = self.law.sample((n,))
        return {"x": x}, self.law.log_prob(x)

    def log_prob(self, x: Sites) -> Tensor:
        return self.law.log_prob(x["x"])


@contextmanager
def kept_game() -> Iterator[list[Game]]:
    """The players of the next `fit`, whose moving average a callback is not given."""
    games: list[Game] = []
    start = training.start

    def keep(*args: Any) -> Game:
        games.append(start(*args))
        return games[0]

    training.start = keep
    try:
        yield games
    finally:
        training.start = start


def on_rows(model: EnergyModel) -> LogDensity:
    """`log_density` of rows instead of sites."""
    return lambda x: model.log_density({"x": x})


def with_fit(
    config: FitConfig,
    problem: Problem,
    seed: int,
    look: Look,
    *,
    static: bool = False,
    fixed: bool = False,
) -> Found:
    """`fit` with a configuration.

    Args:
        config: but for seed and progress bar.
        problem: what is fitted.
        seed: of parameters and training.
        look: see `Look`.
        static: the generator is Gaussian noise instead of a flow.
        fixed: the generator does not follow the energy, so `fit`, which returns the last round
            with a healthy generator, may return an early one: without held-out rows to choose
            by, take the last instead.
    """
    torch.manual_seed(seed)
    generator: Generator | None = None
    if static:
        generator = GaussianNoise(MultivariateNormal(problem.train.mean(0), problem.train.T.cov()))
    model = EnergyModel(problem.program())
    batch = min(config.batch, len(problem.train) // 2)
    config = replace(config, seed=seed, progress=False, batch=batch)
    with kept_game() as games:

        def watch(round_: int, info: dict[str, Any]) -> None:
            if look.due():
                with games[0].averaged() as averaged:
                    look(on_rows(averaged), games[0].generator)

        held_out = None if problem.validation is None else {"x": problem.validation}
        result = fit(
            model, {"x": problem.train}, generator, config, held_out=held_out, callback=watch
        )
    last = games[0].mean if fixed and held_out is None else [*model.parameters()]
    with holding([*model.parameters()], last):
        found = look(on_rows(model), result.generator, last=True)
    return found | {"status": result.status.name.lower(), "rounds": len(result.history)}


def held_back(problem: Problem) -> tuple[Rows, Rows]:
    """Rows to train on and rows to stop by: the problem's own, or a tenth of the training rows."""
    if problem.validation is not None:
        return problem.train, problem.validation
    train, validation = problem.train.tensor_split((len(problem.train) * 9 // 10,))
    return train, validation


def descend(
    loss: Callable[[Rows], Tensor],
    parameters: list[nn.Parameter],
    look: Look,
    show: Callable[[], None],
    *,
    rows: Rows,
    validation: Rows | None,
    kept: nn.Module,
    lr: float,
    batch: int,
    cosine: bool = True,
    clip: float = math.inf,
    after: Callable[[], None] | None = None,
) -> Found:
    """Adam on minibatches until the budget of CPU seconds is spent.

    Args:
        loss: of a minibatch.
        parameters: to be trained.
        look: holds the budget and the clock.
        show: makes a look.
        rows: to train on.
        validation: rows whose loss, every 50 steps and with the same noise every time, decides
            which parameters `kept` ends with; None for the last ones.
        kept: what is evaluated in the end.
        lr: learning rate.
        batch: rows a step.
        cosine: whether the rate falls to 0, as a cosine of the share of the budget spent.
        clip: largest norm of the gradient.
        after: called after each step, e.g. to average parameters.

    Returns:
        `status`, number of `steps`, and the step that was kept, `best_step`.
    """
    optimiser = torch.optim.Adam(parameters, lr=lr, fused=True)
    steps, best, best_step, state = 0, math.inf, 0, None
    status = "time spent"
    while (spent := look.seconds / look.budget) < 1:
        if cosine:
            for group in optimiser.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * spent))
        value = loss(rows[torch.randint(len(rows), (batch,))])
        optimiser.zero_grad()
        value.backward()
        if not nn.utils.clip_grad_norm_(parameters, clip).isfinite():
            status = "diverged"
            break
        optimiser.step()
        steps += 1
        if after is not None:
            after()
        if validation is not None and steps % CHECK_EVERY == 0:
            with seeded(0):
                score = loss(validation).item()
            if score < best:
                best, best_step, state = score, steps, copy.deepcopy(kept.state_dict())
        if look.due():
            show()
    if state is not None:
        kept.load_state_dict(state)
    return {"status": status, "steps": steps, "best_step": best_step if state else steps}


def flow_alone(problem: Problem, seed: int, look: Look) -> Found:
    """The generator's flow by maximum likelihood, at the settings of its warm start."""
    torch.manual_seed(seed)
    flow = FlowGenerator(EnergyModel(problem.program()), {"x": problem.train})
    usual = FitConfig()
    train, validation = held_back(problem)

    def log_prob(x: Rows) -> Tensor:
        return flow.log_prob({"x": x})

    ending = descend(
        lambda x: -log_prob(x).mean(),
        list(flow.parameters()),
        look,
        lambda: look(log_prob, normalised=True),
        rows=train,
        validation=validation,
        kept=flow,
        lr=usual.warm_start_lr,
        batch=min(usual.batch, len(train) // 2),
        clip=usual.clip,
    )
    return look(log_prob, flow, normalised=True, last=True) | ending


CONFIGS: dict[str, tuple[FitConfig, dict[str, bool]]] = {
    "ebm_pp": (FitConfig(), {}),
    "ebm_pp fast": (FitConfig.fast(), {}),
    "ebm_pp thorough": (FitConfig.thorough(), {}),
    "finn2016": (FitConfig.finn2016(), {}),
    "NCE, static noise": (FitConfig(base_share=0.0), {"static": True, "fixed": True}),
    "NCE, frozen flow": (
        FitConfig(generator_steps=0, generator_steps_max=0), {"fixed": True},
    ),
}  # fmt: skip
RECIPES: dict[str, Recipe] = {
    **{name: partial(with_fit, config, **how) for name, (config, how) in CONFIGS.items()},
    "flow alone": flow_alone,
}
