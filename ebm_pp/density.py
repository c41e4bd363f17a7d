"""A Pyro program as an unnormalised density.

A program declares one draw x of its latent sites. Its sample sites are the base measure mu, its
factors and observed sites are minus the energy E:

    log_density(x) = log_base(x) - energy(x),    log_base = log mu,    energy = -sum of factors

The library adds the batch (`program.py`), after it has checked the program and compared the
batch with a loop over draws (`verify.py`). Densities are those of the constrained values x, in
the reference measure of Pyro's own bijections; `constrain` and `unconstrain` give the Jacobian.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial, reduce
from operator import add

import pyro
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.nn.parameter import is_lazy

from ebm_pp.ancestral import REDRAWN, draw_base, draws_inside, require_proper, warn_of_edges
from ebm_pp.coordinates import Coordinates, Rows
from ebm_pp.counts import count
from ebm_pp.data import check_rows, in_support, lazy_rows
from ebm_pp.errors import ProgramError
from ebm_pp.findings import look_at, warn
from ebm_pp.program import Message, Run, Site, Sites, Visitor, by_step, networks
from ebm_pp.rows import columns_as_html
from ebm_pp.soft_value import SoftValue
from ebm_pp.stored import Data
from ebm_pp.support import describe
from ebm_pp.surroundings import (
    evaluating,
    ordinary,
    require_trainable,
    surroundings,
    trainable,
)
from ebm_pp.trace import read_sites
from ebm_pp.trajectory import read_layout
from ebm_pp.verify import compile_program, evaluate

__all__ = ["EnergyModel", "Rows", "Site", "Sites"]


class EnergyModel(nn.Module):
    """An unnormalised density from a Pyro program that declares one draw.

    The program's parameters, whether of an `nn.Module`, a `PyroParam` or a `pyro.param`
    statement, are parameters of this module: `parameters()`, `state_dict()`, `deepcopy`,
    `.double()` and `.to()` work, and Pyro's global parameter store is neither read nor changed.

    Args:
        program: A function, `functools.partial`, `nn.Module` or `PyroModule`.
        *args: Arguments of the program; networks among them become part of the model.
        batching: `auto`, or `vmap`, `plate`, `loop` to accept only that strategy.
        **kwargs: Keyword arguments of the program.

    Attributes:
        sites: The latent sites in program order.
        dim: The number of unconstrained coordinates of one draw.
        circular: Bool `(dim,)`, which unconstrained coordinates are angles.
        proper: Whether the base measure of every site can be sampled.
        batching: The verified strategy, `vmap`, `plate` or `loop`.
        layout: Which sites make a trajectory; None for other programs.
        soft_value: The h of a trajectory's conditional law (soft_value.py), or None. `fit` sets
            it; log_density then has a term `soft_value`, sum_t (next_t - h_t), with which log Z
            given the start state is 0 up to the error of h.

    Raises:
        ProgramError: The program cannot be compiled; the text says why and what to do.

    Examples:
        >>> import pyro.distributions as dist
        >>> def program():
        ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
        ...     pyro.factor("well", -(x**4))
        >>> model = EnergyModel(program)
        >>> model.energy({"x": torch.tensor([1.0, 2.0])})
        tensor([ 1., 16.])
    """

    circular: Tensor
    _anchor: Tensor

    def __init__(
        self,
        program: object,
        *args: object,
        batching: str = "auto",
        **kwargs: object,
    ) -> None:
        super().__init__()
        if not callable(program) or isinstance(program, type):
            raise ProgramError(
                f"the program is {program!r}; expected a function or module that declares one "
                "draw.\n  Most likely a class, or the result of a call: pass an instance."
            )
        if not isinstance(batching, str) or batching not in ("auto", "vmap", "plate", "loop"):
            raise ProgramError(f"batching is {batching!r}; expected auto, vmap, plate or loop.")
        self.program: Callable[..., object] = program
        self.args, self.kwargs = args, kwargs
        self.networks = nn.ModuleList(networks(program, args, kwargs))
        own = [p for p in self.parameters() if p.is_floating_point() and not is_lazy(p)]
        anchor = own[0].detach().new_empty(0) if own else torch.empty(0)
        self.register_buffer("_anchor", anchor, persistent=False)
        # Constraints of the parameters that `pyro.param` statements declare.
        self._declared: dict[str, constraints.Constraint] = {}
        self._compiling = True
        require_trainable(self)
        with trainable(torch.get_default_dtype()):
            self._compiled = compile_program(
                self._run, partial(self._run, validate=True), self, batching
            )
        self._compiling, self._told_of_edges = False, False
        self.batching = self._compiled.batching
        self.soft_value: SoftValue | None = None
        self._set_sites(self._compiled.sites)
        self.coordinates = Coordinates(self.sites, self.dtype, self.device)

    def _set_sites(self, sites: dict[str, Site]) -> None:
        self.sites = sites
        self.dim = sum(site.dim for site in sites.values())
        self.proper = all(site.proper for site in sites.values())
        self.layout = read_layout(sites)
        angles = [torch.full((site.dim,), site.circular) for site in sites.values()]
        self.register_buffer("circular", torch.cat(angles).to(self.device), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the parameters, in which densities are evaluated."""
        return self._anchor.dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self._anchor.device

    def energy(self, x: Rows) -> Float[Tensor, "n"]:
        """Minus the sum of factors and observed log densities; low means likely.

        Rows of `terms`: of any container, values as they are; `check` tells whether they belong
        to the model. Outside the support the factors say what they say, `log_density` is -inf.

        Args:
            x: Draws or rows, each value `(n, *site_shape)`.

        Returns:
            E(x), in nats.
        """
        return -self._total(self.terms(x), self._compiled.factors)

    def log_base(self, x: Rows) -> Float[Tensor, "n"]:
        """The log density of the base measure: the sum of the sites' own log densities.

        Args:
            x: Draws or rows, each value `(n, *site_shape)`.

        Returns:
            log mu(x), in nats; an improper site counts as zero. -inf outside the support; at a
            closed end of it what the distribution says.
        """
        return self._total(self.terms(x), self.sites)

    def log_density(self, x: Rows) -> Float[Tensor, "n"]:
        """The unnormalised log density, `log_base(x) - energy(x)`, in one evaluation.

        Args:
            x: Draws or rows, each value `(n, *site_shape)`.

        Returns:
            log p~(x), in nats: -inf where the base measure has no mass, whatever the factors;
            NaN where x is.
        """
        terms = self.terms(x)
        total = self._total(terms, terms)
        for name in self.coordinates.bounded:
            total = torch.where(terms[name] == -torch.inf, -torch.inf, total)
        return total

    def terms(self, x: Rows) -> dict[str, Tensor]:
        """The summands of the log density, by name.

        Args:
            x: Draws or rows, each value `(n, *site_shape)`, of any container; converted, but not
                checked.

        Returns:
            For each site its log base density, -inf outside its support; for each factor and
            observed site its log factor, which is minus its energy; and `soft_value` if there is
            one; each `(n,)`, in nats.

        Raises:
            DataError: A site is missing, or a value is not `(n, *site_shape)`.
        """
        x = {name: ordinary(value) for name, value in self.as_rows(x).items()}
        with evaluating(len(next(iter(x.values())))):
            terms = evaluate(self._run, self._compiled, x)
        for name in self.coordinates.bounded:
            inside = in_support(self.sites[name], x[name])
            terms[name] = torch.where(inside, terms[name], -torch.inf)
        if self.soft_value is not None and self.layout is not None:
            terms["soft_value"] = self.soft_value.total(self.layout.pack(x))
        return terms

    def step_log_density(self, x: Rows) -> Float[Tensor, "n T"]:
        """Minus the cost of every step of trajectories; their sum is minus the energy.

        Args:
            x: Trajectories, each value `(n, *site_shape)`.

        Returns:
            Nats per step; the last step's include the terminal cost.

        Raises:
            ProgramError: The program has no trajectory.
            DataError: A site is missing, or a value is not `(n, *site_shape)`.
        """
        stages = self.stage_log_density(x)
        return torch.cat([stages[:, :-2], stages[:, -2:].sum(1, keepdim=True)], 1)

    def stage_log_density(self, x: Rows) -> Float[Tensor, "n stages"]:
        """`step_log_density` with minus the terminal cost in a column of its own, the last."""
        if self.layout is None:
            raise ProgramError(
                f"the sites {list(self.sites)} make no trajectory; expected states and actions.\n"
                "  Declare them with trajectory(dynamics, T)."
            )
        x = {name: ordinary(value) for name, value in self.as_rows(x).items()}
        with evaluating(len(next(iter(x.values())))):
            return by_step(self._run, x, self.layout, loop=self.batching == "loop")

    def _total(self, terms: dict[str, Tensor], names: Collection[str]) -> Tensor:
        if not names:
            return torch.zeros_like(next(iter(terms.values())))
        return reduce(add, [terms[name] for name in names])

    def constrain(self, z: Float[Tensor, "n d"]) -> tuple[Sites, Float[Tensor, "n"]]:
        """From unconstrained coordinates to draws.

        Args:
            z: Unconstrained coordinates; angles may have any winding.

        Returns:
            Draws x, angles in one turn (see `Circle`), and log|dx/dz|.
        """
        return self.coordinates.constrain(z)

    def unconstrain(self, x: Rows) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n"]]:
        """From draws to unconstrained coordinates.

        Args:
            x: Draws or rows inside their supports, each value `(n, *site_shape)`.

        Returns:
            Unconstrained coordinates z, angles in [-pi, pi), and log|dz/dx|.
        """
        return self.coordinates.unconstrain(x)

    def inside(self, x: Rows) -> Bool[Tensor, "n"]:
        """Whether each draw is finite and strictly inside its supports."""
        return self.coordinates.inside(x)

    @torch.no_grad()
    def sample_base(self, n: int) -> Sites:
        """Draws of the base measure, ancestrally and from the global random stream.

        Args:
            n: Number of draws.

        Returns:
            Draws, each value `(n, *site_shape)`.

        Raises:
            DataError: n is below 1.
            ProgramError: A site's base is improper, or scaled or masked by the program, or its
                draws are not inside its support.
        """
        n = count("n", n)
        require_proper(self.sites)
        with evaluating(n):
            x, again = draws_inside(
                lambda m: draw_base(self._run, self._compiled, m), self._usable, self.sites, n
            )
        if again > REDRAWN * n and not self._told_of_edges:
            self._told_of_edges = True
            warn_of_edges(again, n, self.dtype)
        return x

    def _usable(self, x: Sites) -> Bool[Tensor, "n"]:
        """Whether each draw is inside its supports, and its coordinates and density are finite."""
        good = self.inside(x) & self.unconstrain(x)[0].isfinite().all(1)
        rows = good.nonzero()[:, 0]
        if len(rows):
            log_base = self.log_base({name: value[rows] for name, value in x.items()})
            good[rows] &= log_base.isfinite()
        return good

    def as_rows(self, x: Rows) -> Sites:
        """Rows of any container in the model's dtype and device, not checked (`data.as_rows`)."""
        return self.coordinates.as_rows(x)

    def check(self, x: object) -> Sites:
        """User data as rows of this model: checked, never repaired.

        A `UserWarning` names what makes a fit to the rows meaningless (findings.py): tied values,
        columns that are constant or determine one another, rows far from all others, a spread
        that the model's type does not resolve.

        Args:
            x: A dict from site name to an array, tensor or nested list `(n, *site_shape)`.

        Returns:
            Tensors in the model's dtype and on its device.

        Raises:
            DataError: A site is missing or unknown, a shape or dtype is wrong, rows are not
                finite, outside the support or on its boundary, in another unit than an angle's, or
                there are no rows.
        """
        rows = self.stored(x)
        warn(look_at(self, rows))
        return {name: value[:] for name, value in rows.items()}

    def stored(self, x: object) -> Data:
        """`check` without copies or warnings: rows elsewhere are converted when indexed."""
        return check_rows(x, self.sites, self.dtype, self.device, self.layout)

    def lazy(self, x: Rows) -> Data:
        """`stored` without looking at the values, and without minding other names."""
        known = {k: v for k, v in x.items() if k in self.sites} if isinstance(x, Mapping) else x
        return lazy_rows(known, self.sites, self.dtype, self.device)

    def _repr_html_(self) -> str:
        """Sites with their supports and factors, in two tables, and the number of parameters."""
        sites = self.sites.values()
        declared = {
            "site": [site.name for site in sites],
            "shape": [str(site.shape) for site in sites],
            "support": ["circle" if site.circular else describe(site.support) for site in sites],
        }
        size = sum(p.numel() for p in self.parameters() if p.requires_grad)
        said = (
            f"{self.dim} unconstrained coordinates; {size} parameters; batched by {self.batching}."
        )
        factors = columns_as_html({"factor (minus its energy)": [*self._compiled.factors]}, said)
        return columns_as_html(declared, "") + factors

    def _run(
        self,
        supply: Callable[[Message], Tensor],
        visit: Visitor,
        inside: AbstractContextManager | None = None,
        *,
        validate: bool = False,
    ) -> None:
        """Run the program once; the arguments of `Run`, and a context around the program."""
        with (
            surroundings(self.dtype, self.device, validate),
            Run(supply, visit, self._parameter),
            inside or nullcontext(),
        ):
            self.program(*self.args, **self.kwargs)

    def _parameter(self, msg: Message) -> Tensor | None:
        """The value of a `pyro.param` statement: ours, a network's own, or None for PyroParam."""
        name, args = msg["name"], msg["args"]
        if name in pyro.get_param_store():
            return None  # a PyroParam, which its module has just put there
        if name in self._declared:
            return transform_to(self._declared[name])(self._parameters[_key(name)])
        if len(args) == 1:
            return None  # Pyro says that the parameter does not exist
        if isinstance(args[1], nn.Parameter):
            return args[1]
        if not self._compiling:
            raise ProgramError(
                f"parameter {name!r} is new after compilation; expected every pyro.param at every "
                "draw.\n  Most likely it stands in a branch: declare it before."
            )
        start = args[1]() if callable(args[1]) else args[1]
        constraint = msg["kwargs"].get("constraint", constraints.real)
        free = transform_to(constraint).inv(torch.as_tensor(start).detach())
        self.register_parameter(_key(name), nn.Parameter(free.clone()))
        self._declared[name] = constraint
        return self._parameter(msg)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EnergyModel":
        before = self.dtype, self.device
        super()._apply(fn, recurse)
        self.args = tuple(fn(a) if isinstance(a, Tensor) else a for a in self.args)
        self.kwargs = {k: fn(a) if isinstance(a, Tensor) else a for k, a in self.kwargs.items()}
        if (self.dtype, self.device) != before and self.device.type != "meta":
            # The bounds of supports are tensors of the program: read them again.
            now = read_sites(partial(self._run, validate=True))
            self._set_sites({k: replace(s, support=now[k].support) for k, s in self.sites.items()})
            self.coordinates.read(self.sites, self.dtype, self.device)
        return self


def _key(name: str) -> str:
    return "param:" + name.replace(".", "%2E")  # a module refuses dots in parameter names
