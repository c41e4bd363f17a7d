"""`fit`: against closed forms, with every objective and loss, and how runs end."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
import zuko
from fuzzing import as_users_call
from generators import GuideGenerator, ZukoGenerator, mean_field
from torch import nn

from ebm_pp import (
    ConfigError,
    DataError,
    EnergyModel,
    FitConfig,
    FlowGenerator,
    GeneratorError,
    ProgramError,
    Status,
    fit,
    load,
    log_partition,
    save,
)
from ebm_pp.errors import CheckpointError
from ebm_pp.game import _generator_loss, start
from models import gaussian
from models.network import Network

SHORT = FitConfig(
    rounds=12, pool=2048, batch=256, energy_steps=20, warm_start_steps=60, energy_lr=2e-2,
    progress=False,
)  # fmt: skip


def short(**changes):
    return FitConfig(**{**{k: getattr(SHORT, k) for k in SHORT.__dataclass_fields__}, **changes})


def learned(model):
    return {n.removeprefix("program."): p.detach().double() for n, p in model.named_parameters()}


def gaussian_fit(config, n=8000, seed=0, **more):
    truth = gaussian.true_parameters(2)
    data = gaussian.draws(truth, n, seed)
    model = EnergyModel(gaussian.Gaussian(2))
    return fit(model, data, config=config, **more), truth, data


@pytest.mark.parametrize("objective", ["discriminator", "importance", "normalised"])
def test_each_objective_finds_the_maximum_likelihood_weights(objective):
    config = short(objective=objective, rounds=20)
    result, truth, data = gaussian_fit(config, n=2000)  # a round sees all 2,000 rows
    best, errors = gaussian.maximum_likelihood(data), gaussian.standard_errors(truth, 2000)
    found = learned(result.model)
    for name in truth:
        # Within one standard error of the maximum-likelihood weights of these very rows (the
        # discriminator's objective is a little less efficient than maximum likelihood).
        assert ((found[name] - best[name]).abs() / errors[name]).max() < 1, (name, found, best)
    log_z = log_partition(result, 20_000, seed=1)
    exact = gaussian.log_partition(found).item()
    assert abs(log_z.value - exact) < 4 * log_z.standard_error + 1e-4
    assert result.status in (Status.FINISHED, Status.CONVERGED)


@pytest.mark.parametrize("loss", ["weighted_forward_kl", "reverse_kl", "score_function", "jensen"])
def test_each_generator_loss_follows_the_energy(loss):
    # The warm start is at the data; the given factor moves p_theta away from it. ESS must recover.
    config = short(generator_loss=loss, generator_lr=5e-3, generator_steps_max=20, rounds=12)
    result, _, _ = gaussian_fit(config)
    assert result.history[-1]["ess"] > 0.9
    assert result.history[-1]["pareto_k"] < 0.7


def test_the_loss_falls_to_two_log_two_with_equal_draws():
    result, _, _ = gaussian_fit(short(nu=1.0, base_share=0.0, rounds=15))
    last = result.history[-1]
    assert abs(last["loss"] - 2 * math.log(2)) < 0.03
    assert abs(last["accuracy"] - 0.5) < 0.03
    assert abs(last["offset_gap"]) < 0.05


def test_finn2016_is_the_paper():
    config = FitConfig.finn2016()
    assert (config.nu, config.base_share, config.generator_loss) == (1.0, 0.0, "reverse_kl")
    assert (config.energy_steps, config.generator_steps, config.offset) == (1, 1, "gradient")
    changes = {k: getattr(config, k) for k in config.__dataclass_fields__}
    changes |= {"rounds": 300, "energy_lr": 1e-2, "progress": False, "diagnose_every": 100}
    result, truth, _ = gaussian_fit(FitConfig(**changes))
    assert len(result.history) == 4  # rounds 0, 100, 200 and the last
    field = learned(result.model)["field_weights"]
    assert (field - truth["field_weights"].double()).abs().max() < 0.4


def quartic():
    x = pyro.sample("x", dist.Normal(0.0, 2.0))
    pyro.factor("well", -(x**4) / 4 + x**2)


def test_a_given_density_in_one_dimension():
    model = EnergyModel(quartic)
    result = fit(model, config=short(rounds=20))
    grid = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    density = -(grid**4) / 4 + grid**2 - grid**2 / 8 - math.log(2 * math.sqrt(2 * math.pi))
    exact = torch.logsumexp(density, 0).item() + math.log(16 / 40000)
    log_z = log_partition(result, 20_000, seed=0)
    assert abs(log_z.value - exact) < 4 * log_z.standard_error
    assert log_z.ess > 0.9
    assert result.n_train == 0
    assert math.isnan(result.history[-1]["loss"])


def test_same_seed_same_fit_and_the_global_stream_is_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, _, _ = gaussian_fit(short(rounds=2))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    two, _, _ = gaussian_fit(short(rounds=2))
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for key, value in one.history[-1].items():
        if key != "cpu_seconds":
            assert value == two.history[-1][key] or math.isnan(value), key


def test_a_fit_prints_as_sentences():
    result, _, _ = gaussian_fit(short(rounds=2))
    status, numbers, hint = repr(result).splitlines()
    assert status == f"{result.status.value} {result.detail}".strip()
    assert numbers.startswith(f"Round {result.best_round + 1} of 2: ESS/n 0.")
    assert "b - log Z" in numbers
    assert "diagnose" in hint


def test_j_follows_the_diagnosis():
    lagging, _, _ = gaussian_fit(short(rounds=4, ess_target=1.1, generator_steps=3))
    assert [info["generator_steps"] for info in lagging.history] == [6, 12, 24, 40]
    resting, _, _ = gaussian_fit(short(rounds=5, ess_target=0.0, generator_steps=8))
    healthy = [info["generator_steps"] for info in resting.history if info["pareto_k"] < 0.6]
    assert healthy[-1] <= 2


def test_callback_history_and_convergence():
    seen = []
    truth = gaussian.true_parameters(2)
    held_out = gaussian.draws(truth, 1000, 99)
    config = short(rounds=40, patience=3, seed=1)
    result, _, _ = gaussian_fit(
        config, held_out=held_out, callback=lambda r, info: seen.append((r, info["held_out"]))
    )
    assert result.status is Status.CONVERGED
    assert len(seen) == len(result.history) < 40
    assert all(math.isfinite(value) for _, value in seen)
    best = max(info["held_out"] for info in result.history)
    log_z = log_partition(result, 20_000, seed=1)
    with torch.no_grad():
        score = (result.model.log_density(held_out).mean() - log_z.value).item()
    assert abs(score - best) < 0.02  # the best round's parameters were returned


def test_interrupting_keeps_the_best_so_far():
    def stop(r, info):
        if r == 2:
            raise KeyboardInterrupt

    result, _, _ = gaussian_fit(short(), callback=stop)
    assert result.status is Status.INTERRUPTED
    assert len(result.history) == 3
    assert log_partition(result, 1000, seed=0).ess > 0.1


class Exploding(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor(
            "bad", self.weight * x + (self.weight.abs() - 0.25).clamp_min(0).mul(1e30).exp()
        )


def test_a_loss_that_stops_being_finite_keeps_the_last_finite_parameters():
    data = {"x": torch.randn(1000, generator=torch.Generator().manual_seed(0)) + 2}
    result = fit(EnergyModel(Exploding()), data, config=short())
    assert result.status is Status.NON_FINITE
    assert "round" in result.detail
    assert all(p.isfinite().all() for p in result.model.parameters())
    assert result.model.program.weight.abs() < 0.25
    assert "no longer" not in result.status.value


def test_errors_name_what_is_wrong():
    data = {"x": torch.randn(1000)}
    with pytest.raises(ProgramError, match="no parameters to train"):
        fit(EnergyModel(quartic), data, config=SHORT)
    model = EnergyModel(Exploding())
    with pytest.raises(DataError, match=r"100 rows; expected at least one batch of 256"):
        fit(model, {"x": data["x"][:100]}, config=SHORT)
    with pytest.raises(DataError):
        fit(model, {"y": data["x"]}, config=SHORT)
    with pytest.raises(Exception, match=r"has_rsample|Generator"):  # beartype may be first
        fit(model, data, object(), SHORT)


class Wrong:
    """A generator with one fault."""

    def __init__(self, fault):
        self.fault, self.has_rsample = fault, fault != "rsample"

    def rsample_and_log_prob(self, n):
        x = torch.randn(n)
        sign = -1 if self.fault == "sign" else 1
        log_q = sign * dist.Normal(0.0, 1.0).log_prob(x)
        return {"y" if self.fault == "site" else "x": x}, log_q

    def log_prob(self, x):
        return dist.Normal(0.0, 1.0).log_prob(next(iter(x.values())))


@pytest.mark.parametrize(
    ("fault", "text", "loss"),
    [
        ("sign", "wrong sign", "weighted_forward_kl"),
        ("site", "draws the sites", "weighted_forward_kl"),
        ("rsample", "needs draws that carry a gradient", "reverse_kl"),
    ],
)
def test_a_faulty_generator_is_named(fault, text, loss):
    data = {"x": torch.randn(1000)}
    with pytest.raises(GeneratorError, match=text):
        fit(EnergyModel(Exploding()), data, Wrong(fault), short(generator_loss=loss))


def test_a_fixed_generator_is_noise_contrastive_estimation():
    data = {"x": torch.randn(4000, generator=torch.Generator().manual_seed(1)) + 0.5}
    result = fit(EnergyModel(Shift()), data, Wrong(""), short(rounds=15))
    assert abs(result.model.program.weight.item() - data["x"].mean().item()) < 0.05


def test_save_and_load(tmp_path):
    result, _, data = gaussian_fit(short(rounds=2))
    save(result, tmp_path / "fit.pt")
    again = load(tmp_path / "fit.pt", gaussian.Gaussian(2))
    assert again.config == result.config
    assert again.status is result.status
    assert again.history[-1]["ess"] == result.history[-1]["ess"]
    with torch.no_grad():
        for name in ("model", "generator"):
            score = "log_density" if name == "model" else "log_prob"
            one = getattr(getattr(result, name), score)(data)
            assert torch.equal(one, getattr(getattr(again, name), score)(data))
    with pytest.raises(CheckpointError, match="do not fit"):
        load(tmp_path / "fit.pt", gaussian.Gaussian(3))
    (tmp_path / "other").write_text("no fit")
    with pytest.raises(CheckpointError, match="not a saved fit"):
        load(tmp_path / "other", gaussian.Gaussian(2))
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "missing", gaussian.Gaussian(2))


def test_float64_runs_in_float64():
    truth = gaussian.true_parameters(2)
    model = EnergyModel(gaussian.Gaussian(2).double())
    result = fit(model, gaussian.draws(truth, 1000, 0), config=short(rounds=1))
    assert {p.dtype for p in result.model.parameters()} == {torch.float64}
    assert {p.dtype for p in result.generator.parameters()} == {torch.float64}


def test_student_t_base_holds_a_heavy_tail():
    def cauchy_like():
        pyro.sample("x", dist.StudentT(torch.tensor(3.0), 0.0, 1.0))

    ks = {}
    for base in ("normal", "student_t"):
        model = EnergyModel(cauchy_like)
        generator = FlowGenerator(model, model.sample_base(4000), base=base)
        result = fit(model, None, generator, short(rounds=15, base_share=0.0))
        ks[base] = log_partition(result, 20_000, seed=0).pareto_k
    assert ks["student_t"] < ks["normal"]
    assert ks["student_t"] < 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"generator_loss": "reverse-kl"}, {"offset": "Newton"}, {"objective": "nce"},
        {"rounds": 0}, {"energy_steps": 0}, {"nu": 0.0}, {"base_share": 1.0}, {"average": 1.5},
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(Exception, match=name):  # beartype is first for a wrong word
        FitConfig(**wrong)


class NanDraws(nn.Module):
    """A generator whose draws stop being numbers once it is trained."""

    has_rsample = True

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.calls = 0

    def rsample_and_log_prob(self, n):
        self.calls += 1
        law = dist.Normal(self.loc, 1.0)
        x = law.rsample((n,))
        log_q = law.log_prob(x)
        return {"x": x * (math.nan if self.calls > 3 else 1.0)}, log_q

    def log_prob(self, x):
        return dist.Normal(self.loc, 1.0, validate_args=False).log_prob(x["x"])


class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("tilt", self.weight * x)


def test_a_draw_that_is_no_number_ends_the_run_with_the_best_so_far():
    data = {"x": torch.randn(1000) + 0.5}
    result = fit(EnergyModel(Shift()), data, NanDraws(), short(base_share=0.0))
    assert result.status is Status.NON_FINITE
    assert "round 2" in result.detail
    assert len(result.history) == 2
    assert result.model.program.weight.isfinite()


@pytest.mark.parametrize(("n", "counted"), [(1000, 1000), (2000, 2000), (20_000, 8192)])
def test_the_default_prior_counts_once_for_few_rows(n, counted):
    rows = {"x": torch.randn(n, 3)}
    model = EnergyModel(Network(rows["x"], width=8))
    for decay, expected in ((None, 1.64 * 2 / counted), (0.5, 0.5)):
        game = start(model, rows, None, None, short(warm_start_steps=0, energy_decay=decay))
        for player, module in ((game.energy, model), (game.proposal, game.generator)):
            matrices, others = player.optimiser.param_groups
            assert matrices["weight_decay"] == pytest.approx(expected)
            assert others["weight_decay"] == 0
            assert all(p.dim() == 2 for p in matrices["params"])
            n_parameters = sum(len(g["params"]) for g in (matrices, others))
            assert n_parameters == len(list(module.parameters()))


def test_a_callbacks_own_error_passes_and_leaves_the_best_parameters():
    truth = gaussian.true_parameters(2)
    model = EnergyModel(gaussian.Gaussian(2))
    seen = []

    def fail(r, info):
        seen.append([p.detach().clone() for p in model.parameters()])
        if r == 2:
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        fit(model, gaussian.draws(truth, 1000, 0), config=short(), callback=fail)
    # The averaged parameters of round 2, not the raw ones the last step left.
    assert not torch.equal(next(model.parameters()), seen[-1][0])


def hard_walls():
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    pyro.factor("box", torch.where(x.abs() > 4, -math.inf, -0.01 * x**2))


def test_a_given_density_with_hard_zeros():
    result = fit(EnergyModel(hard_walls), config=short(rounds=15))
    log_z = log_partition(result, 20_000, seed=0)
    grid = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    density = dist.Normal(0.0, 10.0).log_prob(grid) - 0.01 * grid**2
    exact = torch.logsumexp(density, 0).item() + math.log(8 / 20000)
    assert abs(log_z.value - exact) < 4 * log_z.standard_error + 1e-4


def test_status_names_tempering_and_lagging():
    def far():
        x = pyro.sample("x", dist.Normal(torch.zeros(8), 10.0).to_event(1))
        pyro.factor("spike", -0.5 * ((x - 3) / 0.05).square().sum())

    tempering = fit(EnergyModel(far), config=short(rounds=2, generator_steps_max=1))
    assert tempering.status is Status.TEMPERING
    model = EnergyModel(Shift())
    data = {"x": torch.randn(1000) + 0.5}
    lagging = fit(model, data, FixedFar(), short(rounds=2, base_share=0.0))
    assert lagging.status is Status.LAGGING


class FixedFar:
    has_rsample = True
    law = dist.Normal(-6.0, 0.3)

    def rsample_and_log_prob(self, n):
        x = self.law.sample((n,))
        return {"x": x}, self.law.log_prob(x)

    def log_prob(self, x):
        return self.law.log_prob(x["x"])


def test_more_bad_input_is_named():
    data = {"x": torch.randn(1000)}
    with pytest.raises(Exception, match=r"EnergyModel"):  # beartype may be first
        fit(Shift(), data, config=SHORT)
    with pytest.raises(DataError, match="held-out rows were given without data"):
        fit(EnergyModel(quartic), config=SHORT, held_out=data)

    class Wide(FixedFar):
        def rsample_and_log_prob(self, n):
            x, log_q = super().rsample_and_log_prob(n)
            return {"x": x["x"][:, None]}, log_q

    with pytest.raises(GeneratorError, match=r"site 'x'.*shape \(64, 1\)"):
        fit(EnergyModel(Shift()), data, Wide(), SHORT)


@pytest.mark.parametrize("name", ["zuko", "guide"])
def test_generators_from_elsewhere_are_fitted(name):
    model = EnergyModel(gaussian.Gaussian(2))
    if name == "zuko":
        generator = ZukoGenerator(model, zuko.flows.NICE(2, transforms=2, hidden_features=(16,)))
    else:
        generator = GuideGenerator(mean_field(model))
    truth = gaussian.true_parameters(2)
    data = gaussian.draws(truth, 2000, 0)
    before = [p.detach().clone() for p in generator.parameters()]
    result = fit(model, data, generator, short(rounds=12, generator_lr=1e-2))
    assert result.generator is generator
    assert any(not torch.equal(a, b) for a, b in zip(before, generator.parameters(), strict=True))
    exact = gaussian.log_partition(learned(model)).item()
    log_z = log_partition(result, 20_000, seed=1)
    assert abs(log_z.value - exact) < 4 * log_z.standard_error
    assert log_z.ess > 0.5


def test_likelihood_weight_pulls_reverse_kl_towards_the_data_and_fades():
    truth = gaussian.true_parameters(2)
    data = gaussian.draws(truth, 2000, 0)
    config = short(generator_loss="reverse_kl", likelihood_weight=0.5, rounds=6)
    game = start(EnergyModel(gaussian.Gaussian(2)), data, None, None, config)

    def loss(share_left):
        torch.manual_seed(0)
        return _generator_loss(game, data, share_left).item()

    torch.manual_seed(0)
    x, log_q = game.generator.rsample_and_log_prob(config.batch)
    plain = (log_q - game.model.log_density(x)).mean().item()
    rows = {"x": data["x"][torch.randint(2000, (config.batch,))]}
    pull = -game.generator.log_prob(rows).mean().item()
    assert loss(0.0) == pytest.approx(plain, abs=1e-5)
    assert loss(1.0) == pytest.approx(plain + 0.5 * pull, abs=1e-5)
    assert loss(0.5) == pytest.approx(plain + 0.25 * pull, abs=1e-5)


def test_a_config_in_the_generators_place_is_named():
    with as_users_call(), pytest.raises(ConfigError, match=r"as the generator.*\n.*config="):
        fit(
            EnergyModel(gaussian.Gaussian(2)),
            gaussian.draws(gaussian.true_parameters(2), 8, 0),
            FitConfig(rounds=1),
        )


@pytest.mark.parametrize(("nu", "batch", "rows"), [(1e-3, 1, 19), (1.0, 1, 3), (1e-3, 2, 2)])
def test_a_batch_has_a_draw_at_least(nu, batch, rows):
    """Of none the loss would be nan; the loss weighs their mean, so one is right on average."""
    config = FitConfig.fast(rounds=1, pool=16, nu=nu, batch=batch, energy_steps=3, progress=False)
    data = gaussian.draws(gaussian.true_parameters(2), rows, 0)
    result = fit(EnergyModel(gaussian.Gaussian(2)), data, config=config)
    assert result.status != Status.NON_FINITE
    assert math.isfinite(result.history[0]["loss"])
