"""What an exact log partition gives: Fisher information, standard errors, maximum likelihood.

If the factors are linear in the weights, log p(x) = log mu(x) + theta . T(x) - log Z(theta), then

    grad log Z = E[T],    Hessian of log Z = Cov[T] = Fisher information F of one draw,

so that the maximum-likelihood weights of n draws scatter around the truth with covariance
F^-1 / n, and maximum likelihood is a convex problem: minimise log Z(theta) - theta . mean(T).

References:
    Wainwright and Jordan 2008, Graphical Models, Exponential Families, and Variational Inference,
    section 3.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Parameters = dict[str, Tensor]
LogPartition = Callable[[Parameters], Tensor]


def fisher_information(
    log_partition: LogPartition, parameters: Parameters
) -> Float[Tensor, "k k"]:
    """Covariance of the statistics under the model: the Hessian of log Z.

    Args:
        log_partition: exact log Z as a differentiable function of the weights.
        parameters: the k weights in all, as named vectors or scalars.

    Returns:
        The information of one draw, in float64; rows in the order of `parameters`, flattened.
    """
    theta = _flatten(parameters)
    hessian = torch.autograd.functional.hessian(
        lambda flat: log_partition(_unflatten(flat, parameters)), theta
    )
    return 0.5 * (hessian + hessian.T)


def standard_errors(log_partition: LogPartition, parameters: Parameters, n: int) -> Parameters:
    """Asymptotic standard error of each maximum-likelihood weight from n independent draws.

    Args:
        log_partition: exact log Z as a differentiable function of the weights.
        parameters: the weights at which the information is taken, usually the true ones.
        n: the number of draws.

    Returns:
        Tensors shaped like `parameters`. No estimator that is unbiased does better (Cramer-Rao).
    """
    covariance = torch.linalg.inv(fisher_information(log_partition, parameters)) / n
    return _unflatten(covariance.diagonal().sqrt(), parameters)


def maximum_likelihood(
    log_partition: LogPartition,
    mean_statistics: Parameters,
    start: Parameters,
    steps: int = 30,
) -> Parameters:
    """Newton's method for E[T] = mean of T over the data.

    Args:
        log_partition: exact log Z as a differentiable function of the weights.
        mean_statistics: the mean of T over the data, shaped like the weights.
        start: where Newton's method begins; near the truth, or zero if the truth is mild.
        steps: the most steps taken.

    Returns:
        The weights, with the gradient of the mean log-likelihood below 1e-10.

    Raises:
        ValueError: Newton's method did not get there from `start`.
    """
    target, theta = _flatten(mean_statistics), _flatten(start)
    for _ in range(steps):
        leaf = theta.clone().requires_grad_()
        (mean,) = torch.autograd.grad(log_partition(_unflatten(leaf, start)), leaf)
        parameters = _unflatten(theta, start)
        if (mean - target).abs().max() < 1e-10:
            return parameters
        information = fisher_information(log_partition, parameters)
        theta = theta - torch.linalg.solve(information, mean - target)
    raise ValueError(f"maximum likelihood did not converge in {steps} Newton steps from `start`")


def _flatten(parameters: Parameters) -> Float[Tensor, "k"]:
    return torch.cat([value.detach().double().reshape(-1) for value in parameters.values()])


def _unflatten(flat: Float[Tensor, "k"], like: Parameters) -> Parameters:
    parts = flat.split([value.numel() for value in like.values()])
    return {name: p.reshape(like[name].shape) for name, p in zip(like, parts, strict=True)}
