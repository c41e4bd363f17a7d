"""A program whose base measure is exchanged for a flow, so that an energy only corrects it."""

from collections.abc import Callable
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ebm_pp.errors import ProgramError
from ebm_pp.generator import FlowGenerator
from ebm_pp.program import Sites


class Tilt(nn.Module):
    """See `tilt`."""

    def __init__(self, program: Callable[..., Any], flow: FlowGenerator) -> None:
        super().__init__()
        self.program = program
        self.flow = flow.requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the program's own
        """One draw of the program, its base measure exchanged for the flow."""
        with _Record() as base:
            result = self.program(*args, **kwargs)
        x = {name: value.unsqueeze(0) for name, value in base.values.items()}
        pyro.factor("tilt", self.flow.log_prob(x).squeeze(0) - base.log_prob)
        return result


class _Record(Messenger):
    """Collects the latent sites' values and the sum of their log densities."""

    def __enter__(self) -> "_Record":
        self.values: Sites = {}
        self.log_prob: Tensor | float = 0.0
        return super().__enter__()

    def _pyro_post_sample(self, msg: Any) -> None:  # noqa: ANN401 - Pyro's message
        if not msg["is_observed"]:
            if msg["mask"] is not None or not (
                isinstance(msg["scale"], float) and msg["scale"] == 1
            ):
                raise ProgramError(
                    f"site {msg['name']!r} is scaled or masked; tilt expects plain sites.\n"
                    "  Scale or mask the factors instead."
                )
            self.values[msg["name"]] = msg["value"]
            self.log_prob = self.log_prob + msg["fn"].log_prob(msg["value"]).sum()


def tilt(program: Callable[..., Any], flow: FlowGenerator) -> Tilt:
    """The program whose density is p~ = q_0 exp(-E), q_0 the flow, frozen from here on.

    The program's own base measure stays (it is sampled for the defensive mixture); a factor named
    `tilt` adds log q_0 - log_base. With an energy that starts at 0, training starts from q_0 and
    only has to learn what the flow got wrong.

    Args:
        program: a program with the flow's sites, without `scale` or `mask` on them.
        flow: a generator of the same sites, usually warm-started by maximum likelihood. Pass a
            copy if the same flow is to be trained on.
    """
    if not callable(program) or not isinstance(flow, nn.Module) or not hasattr(flow, "log_prob"):
        raise ProgramError(
            f"tilt was given a {type(program).__name__} and a {type(flow).__name__}; expected a "
            "program and a FlowGenerator.\n  Pass the program itself, not its EnergyModel."
        )
    return Tilt(program, flow)
