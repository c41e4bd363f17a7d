"""Inverse reinforcement learning by others: imitation 1.0.1 and econirl 0.1.1, numpy in and out.

Every peer is imported inside the function that runs it, so this module imports without them.
The tasks are those of *Soft LQR, imitation*, the 6-state MDP, and seals' random transition MDP.
Set `torch.set_num_threads(1)` first: two threads are slower on nets of this size.

`airl`, `gail` and `behaviour_cloning` seed the global generators of Python, numpy and torch:
imitation shuffles demonstrations and draws its replay buffer from those.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

PPO = dict(batch_size=64, ent_coef=0.0, gamma=0.95, n_epochs=5)  # both tutorials of imitation
Demonstrations = tuple[np.ndarray, np.ndarray]  # states (n, T+1, ds), actions (n, T, da)


@dataclass(frozen=True)
class Imitation:
    """A trained imitator; its rewards are functions of (states, actions, next_states)."""

    # states (m, ds) -> (mean (m, da), sd (m, da)) of the Gaussian policy before clipping
    policy: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    reward: Callable[..., np.ndarray] | None  # AIRL: unshaped g(s, a); GAIL: -log(1 - D)
    shaped: Callable[..., np.ndarray] | None  # AIRL: g + .99 h(s') - h(s); GAIL: as reward
    cpu_seconds: float  # process time of building and training
    steps: int  # of the environment
    model: Any  # the peer's own policy


@dataclass(frozen=True)
class TabularFit:
    """A tabular fit by imitation."""

    policy: np.ndarray  # pi[t, s, a], t = 0..H-1, soft-optimal for reward at gamma
    reward: np.ndarray  # r[s], up to what matching visits leaves free
    occupancy: np.ndarray  # (S,), discounted visits over t = 0..H of the policy trained on
    gap: float  # largest |expert's occupancy - occupancy|
    cpu_seconds: float  # process time of training


@dataclass(frozen=True)
class WeightsFit:
    """Reward weights by econirl; r(s, a) = features[s, a] @ weights."""

    weights: np.ndarray  # theta (k,), rounded by econirl to float32
    standard_errors: np.ndarray  # (k,); `econirl_mce` says what they assume
    log_likelihood: float  # sum log pi_t(a_t | s_t) at weights: reported, not maximised
    policy: np.ndarray  # pi[t, s, a]
    residual: float  # norm of mean features per step, data minus policy
    converged: bool  # econirl's verdict
    cpu_seconds: float  # process time, with JAX's tracing and the standard errors


class _LinearQuadratic:
    """Dynamics and reward of `LinearQuadraticEnv`, without its base class."""

    def __init__(self, A, B, W, Q, R, P, horizon: int, seed: int, bound: float = 20.0) -> None:
        from gymnasium.spaces import Box

        values, vectors = np.linalg.eigh(np.asarray(W, float))
        self.root = vectors * np.sqrt(np.maximum(values, 0.0))  # W may be singular
        self.A, self.B, self.Q, self.R, self.P = (np.asarray(m, float) for m in (A, B, Q, R, P))
        self.horizon, self.t = horizon, 0
        states, actions = self.B.shape
        self.observation_space = Box(-np.inf, np.inf, (states,), np.float32)
        self.action_space = Box(-bound, bound, (actions,), np.float32)
        self._np_random = np.random.default_rng(seed)

    def reset(self, *, seed: int | None = None, options=None):
        if seed is not None:
            self._np_random = np.random.default_rng(seed)
        self.t, self.x = 0, self._np_random.standard_normal(len(self.A))
        return self.x.astype(np.float32), {}

    def step(self, action):
        u = np.asarray(action, float)
        reward = -0.5 * (self.x @ self.Q @ self.x + u @ self.R @ u)
        noise = self.root @ self._np_random.standard_normal(len(self.A))
        self.x = self.A @ self.x + self.B @ u + noise
        self.t += 1
        last = self.t == self.horizon
        if last:
            reward -= 0.5 * self.x @ self.P @ self.x
        return self.x.astype(np.float32), float(reward), False, last, {}


def LinearQuadraticEnv(A, B, W, Q, R, P, horizon: int, seed: int):
    """The soft LQR as a gymnasium environment: x' = A x + B u + w, x0 ~ N(0, I), w ~ N(0, W).

    The reward is -(x'Qx + u'Ru)/2, at the last step also -x'Px/2 of the state reached; then the
    episode is truncated (not terminated), so that PPO bootstraps, as P asks for. Actions lie in
    a box of +-20, some ten standard deviations of the expert's: an infinite box breaks some
    libraries, and a narrow one would change the policy.

    Args:
        A, B: Dynamics, (ds, ds) and (ds, da).
        W: Covariance of the noise (ds, ds); zero is allowed.
        Q, R, P: Costs of state (ds, ds), action (da, da) and last state (ds, ds).
        horizon: Steps of an episode.
        seed: Of the first episodes; `reset(seed=...)` starts a new stream.
    """
    import gymnasium

    kind = type("LinearQuadraticEnv", (_LinearQuadratic, gymnasium.Env), {})
    return kind(A, B, W, Q, R, P, horizon, seed)


def _vector_env(make_env: Callable[[], Any], seed: int, n: int = 8):
    from imitation.data.wrappers import RolloutInfoWrapper
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.utils import set_random_seed
    from stable_baselines3.common.vec_env import DummyVecEnv

    set_random_seed(seed)
    venv = DummyVecEnv([lambda: RolloutInfoWrapper(Monitor(make_env()))] * n)
    venv.seed(1000 * seed)  # environment i gets 1000 seed + i at its next reset
    return venv


def _trajectories(demonstrations: Demonstrations) -> list:
    from imitation.data.types import Trajectory

    states, actions = (np.asarray(x, np.float32) for x in demonstrations)
    return [Trajectory(s, a, None, terminal=True) for s, a in zip(states, actions, strict=True)]


def _silent():
    from imitation.util import logger

    return logger.configure(tempfile.mkdtemp(), format_strs=[])


def _gaussian(policy) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    import torch

    def moments(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            x = torch.as_tensor(np.asarray(states), dtype=torch.float32)
            normal = policy.get_distribution(x).distribution
            return normal.mean.double().numpy(), normal.stddev.double().numpy()

    return moments


def _reward(net) -> Callable[..., np.ndarray]:
    def rewards(states, actions, next_states) -> np.ndarray:
        arrays = (np.asarray(a, np.float32) for a in (states, actions, next_states))
        return net.predict(*arrays, np.zeros(len(states), bool)).astype(float)

    return rewards


def _adversarial(trainer, net, options, ppo, make_env, demonstrations, steps, seed) -> Imitation:
    import stable_baselines3
    from imitation.util.networks import RunningNorm
    from stable_baselines3.ppo import MlpPolicy

    start = time.process_time()
    venv = _vector_env(make_env, seed)
    learner = stable_baselines3.PPO(MlpPolicy, venv, seed=seed, device="cpu", **ppo)
    spaces = venv.observation_space, venv.action_space
    peer = trainer(
        demonstrations=_trajectories(demonstrations), venv=venv, gen_algo=learner,
        reward_net=net(*spaces, normalize_input_layer=RunningNorm), custom_logger=_silent(),
        gen_replay_buffer_capacity=512, **options,
    )  # fmt: skip
    peer.train(steps)
    peer.reward_train.eval()  # RunningNorm must not learn from what is asked later
    return Imitation(
        _gaussian(learner.policy), _reward(peer.reward_test), _reward(peer.reward_train),
        time.process_time() - start, learner.num_timesteps, learner.policy,
    )  # fmt: skip


def airl(make_env, demonstrations, steps: int, seed: int, ppo: dict | None = None) -> Imitation:
    """AIRL of imitation 1.0.1, with the settings of its documentation (tutorial *Train AIRL*).

    8 environments; PPO with 2048 steps per environment and round (Stable-Baselines3's default),
    batch 64, 5 epochs, learning rate 5e-4, gamma .95, clip .1, vf_coef .1, ent_coef 0;
    `BasicShapedRewardNet` with `RunningNorm`; 2048 demonstrated steps per update of the
    discriminator, 16 updates a round, replay buffer 512. The tutorial trains for 2,000,000 steps.

    imitation gives PPO the reward f, not the paper's f - log pi, so the generator has an
    entropy term only through `ent_coef`, which is 0 above: its variance collapses. On the LQR
    `ppo=dict(ent_coef=0.1)` was the best of four settings tried with 300,000 steps.

    Args:
        make_env: A new gymnasium environment of fixed horizon.
        demonstrations: States (n, T+1, ds) and actions (n, T, da), n T >= 2048.
        steps: Environment steps; whole rounds of 16,384 are taken, at least one.
        seed: Of everything, through the global generators.
        ppo: Settings of PPO to change from the documented ones.
    """
    from imitation.algorithms.adversarial.airl import AIRL
    from imitation.rewards.reward_nets import BasicShapedRewardNet

    options = dict(demo_batch_size=2048, n_disc_updates_per_round=16)
    ppo = dict(learning_rate=5e-4, clip_range=0.1, vf_coef=0.1) | PPO | (ppo or {})
    task = make_env, demonstrations, steps, seed
    return _adversarial(AIRL, BasicShapedRewardNet, options, ppo, *task)


def gail(make_env, demonstrations, steps: int, seed: int, ppo: dict | None = None) -> Imitation:
    """GAIL of imitation 1.0.1, with the settings of its documentation (tutorial *Train GAIL*).

    As `airl`, but PPO with learning rate 4e-4 and Stable-Baselines3's clip .2 and vf_coef .5;
    `BasicRewardNet` with `RunningNorm`; 1024 demonstrated steps per update, 8 updates a round.
    The tutorial trains for 800,000 steps. Arguments as in `airl`; n T >= 1024.
    """
    from imitation.algorithms.adversarial.gail import GAIL
    from imitation.rewards.reward_nets import BasicRewardNet

    options = dict(demo_batch_size=1024, n_disc_updates_per_round=8)
    ppo = dict(learning_rate=4e-4) | PPO | (ppo or {})
    return _adversarial(GAIL, BasicRewardNet, options, ppo, make_env, demonstrations, steps, seed)


def behaviour_cloning(make_env, demonstrations, seed: int, epochs: int = 1) -> Imitation:
    """Behaviour cloning of imitation 1.0.1 at its defaults (tutorial *Train BC*).

    Two tanh layers of 32, a standard deviation that does not depend on the state, Adam at 1e-3,
    batch 32, entropy weight 1e-3, one epoch: the tutorial's one epoch has some 800 batches, that
    of 100 demonstrations of 30 steps has 93. `epochs=20` is a fair amount there.

    Args:
        make_env, demonstrations, seed: As in `airl`; only the spaces of the environment are used.
        epochs: Passes over the data.
    """
    from imitation.algorithms.bc import BC
    from stable_baselines3.common.utils import set_random_seed

    start = time.process_time()
    set_random_seed(seed)
    env = make_env()
    peer = BC(
        observation_space=env.observation_space, action_space=env.action_space, device="cpu",
        demonstrations=_trajectories(demonstrations), rng=np.random.default_rng(seed),
        custom_logger=_silent(),
    )  # fmt: skip
    peer.train(n_epochs=epochs, progress_bar=False)
    seconds = time.process_time() - start
    return Imitation(_gaussian(peer.policy), None, None, seconds, 0, peer.policy)


def random_transition_mdp(random_features: int | None = None) -> tuple[np.ndarray, ...]:
    """seals 0.2.1's RandomTransitionEnv(16 states, 4 actions, branching 4, horizon 20, seed 42).

    The reward depends on the state alone: r = features @ weights, where seals calls the features
    `observation_matrix` and draws the weights from N(0, 1) after everything else.

    Args:
        random_features: Number of features drawn from N(0, 2^2); None: one-hot states.

    Returns:
        transitions (16, 4, 16) (seals keeps float32; here float64, rows rescaled to sum to 1),
        start (16,), features (16, k), weights (k,), all exact truth.
    """
    from seals.diagnostics.random_trans import RandomTransitionEnv

    env = RandomTransitionEnv(
        n_states=16, n_actions=4, branch_factor=4, horizon=20, generator_seed=42,
        random_obs=random_features is not None, obs_dim=random_features,
    )  # fmt: skip
    transitions = env.transition_matrix.astype(float)
    transitions /= transitions.sum(-1, keepdims=True)
    features = env.observation_matrix.astype(float)
    return transitions, env.initial_state_dist, features, np.asarray(env.reward_weights, float)


def _tabular_env(transitions, start, horizon, features, reward):
    from seals.base_envs import TabularModelPOMDP

    return TabularModelPOMDP(
        transition_matrix=transitions, observation_matrix=np.asarray(features, np.float32),
        reward_matrix=reward, horizon=horizon, initial_state_dist=start,
    )  # fmt: skip


def mce_expert(transitions, start, reward, horizon: int, gamma: float) -> tuple:
    """imitation's soft-optimal policy pi[t, s, a] at `gamma` and its occupancy (S,), t = 0..H.

    `mce_partition_fh` and `mce_occupancy_measures(pi=...)` of imitation 1.0.1. The reward (S,)
    is earned in the states at t = 0..H-1; the occupancy counts the state at H too.
    """
    from imitation.algorithms.mce_irl import mce_occupancy_measures, mce_partition_fh

    env = _tabular_env(transitions, start, horizon, np.eye(len(start)), reward)
    pi = mce_partition_fh(env, discount=gamma)[2]
    return pi, mce_occupancy_measures(env, pi=pi, discount=gamma)[1]


def mce_irl(
    transitions, start, occupancy, horizon: int, gamma: float, features, hidden=(256,),
    iterations: int = 1000, repaired: bool = False, seed: int = 0,
) -> TabularFit:  # fmt: skip
    """Tabular maximum-causal-entropy IRL of imitation 1.0.1, r(s) = net(features(s)).

    Settings of its documentation: one hidden layer of 256, Adam at .01, at most 1000 iterations,
    linf_eps 1e-3. In double precision, to compare like with like.

    At gamma < 1 it trains an *undiscounted* soft policy to the discounted occupancy, because
    `mce_occupancy_measures` does not pass `discount` on, and then returns the discounted policy
    of that reward, which does not match the expert. `repaired=True` passes it on.

    Args:
        transitions, start: (S, A, S) and (S,).
        occupancy: Expert's expected discounted visits over t = 0..H, (S,): from `mce_expert`,
            or sum_t gamma^t 1[s_t] averaged over demonstrations of H + 1 states.
        horizon: H, number of actions.
        gamma: Discount.
        features: (S, k).
        hidden: Layers of the net; () gives a linear reward with an intercept.
        iterations: At most.
        repaired: Whether to mend the missing discount.
        seed: Of the net.
    """
    import torch
    from imitation.algorithms import mce_irl as peer
    from imitation.rewards.reward_nets import BasicRewardNet

    torch.manual_seed(seed)
    env = _tabular_env(transitions, start, horizon, features, np.zeros(len(start)))
    net = BasicRewardNet(
        env.observation_space, env.action_space, hid_sizes=hidden,
        use_action=False, use_next_state=False, use_done=False,
    ).double()  # fmt: skip
    begin = time.process_time()
    fit = peer.MCEIRL(
        occupancy, env, net, np.random.default_rng(seed), discount=gamma,
        log_interval=None, optimizer_kwargs={"lr": 0.01}, custom_logger=_silent(),
    )  # fmt: skip
    shipped = peer.mce_occupancy_measures

    def mended(env, *, reward, discount):
        pi = peer.mce_partition_fh(env, reward=reward, discount=discount)[2]
        return shipped(env, pi=pi, discount=discount)

    with mock.patch.object(peer, "mce_occupancy_measures", mended if repaired else shipped):
        visits = fit.train(iterations)
    seconds = time.process_time() - begin
    with torch.no_grad():
        states = torch.as_tensor(env.observation_matrix).double()
        reward = net(states, None, None, None).reshape(-1).numpy()
    gap = float(np.abs(occupancy - visits).max())
    return TabularFit(fit.policy.pi, reward, visits, gap, seconds)


def econirl_mce(
    transitions, features, demonstrations, horizon: int, bootstrap: int = 0, seed: int = 0
) -> WeightsFit:
    """Maximum-causal-entropy estimate of econirl 0.1.1, finite horizon, undiscounted.

    `MCEIRLEstimator` has a finite horizon of its own (`DDCProblem(num_periods=H)` allows
    discount 1): pi_t by backward induction from V_H = 0. It then *matches features*: scipy's
    `root(method="hybr", tol=1e-6)` from theta = 0 on

        mean over demonstrations and t < H of f(s_t, a_t)  -  E_pi[the same]  =  0,

    the expectation from the *empirical* distribution of s_0, rounded to float32. That is the
    maximum of theta @ f_data - sum_s0 p^(s_0) V_0(s_0; theta). It is not the maximum of
    sum log pi_t(a_t | s_t), which it reports, except where dynamics are deterministic.

    Args:
        transitions, features: (S, A, S) and (S, A, k); r = features @ theta.
        demonstrations: States (n, H+1) and actions (n, H), integers.
        horizon: H.
        bootstrap: Trajectories resampled so often for the standard errors; 0: inverse Hessian of
            sum log pi, which leaves out the noise of the dynamics in f_data and so is too small
            unless dynamics are deterministic.
        seed: Of the bootstrap.
    """
    from econirl.core.types import DDCProblem, Panel, Trajectory
    from econirl.estimation.mce_irl import MCEIRLEstimator
    from econirl.preferences.action_reward import ActionDependentReward

    start = time.process_time()
    states, actions = (np.asarray(x, np.int32) for x in demonstrations)
    paths = zip(states, actions, strict=True)
    panel = Panel([Trajectory(s[:-1], a, s[1:]) for s, a in paths])
    s, a, k = features.shape
    problem = DDCProblem(s, a, discount_factor=1.0, num_periods=horizon)
    reward = ActionDependentReward(np.asarray(features, float), [f"theta{i}" for i in range(k)])
    estimator = MCEIRLEstimator(se_method="bootstrap" if bootstrap else "hessian")
    fit = estimator.estimate(
        panel, reward, problem, np.ascontiguousarray(np.moveaxis(transitions, 0, 1)),
        n_bootstrap=bootstrap, se_seed=seed,
    )  # fmt: skip
    return WeightsFit(
        np.asarray(fit.parameters, float), np.asarray(fit.standard_errors, float),
        float(fit.log_likelihood), np.asarray(fit.metadata["time_policy"]),
        fit.metadata["stationarity_residual"], bool(fit.converged), time.process_time() - start,
    )  # fmt: skip
