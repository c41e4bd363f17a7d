"""What a caller has set or is doing meanwhile changes no number, and is as it was afterwards."""

import os
import pkgutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import joblib
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine import runtime
from torch import nn

import ebm_pp
from ebm_pp import EnergyModel

ROWS = {"x": torch.randn(600, 2, generator=torch.Generator().manual_seed(1))}
CONFIG = ebm_pp.FitConfig(
    rounds=2, batch=128, pool=512, warm_start_steps=20, energy_steps=5, progress=False
)


def program(net):
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    pyro.factor("f", -net(x).sum())


def model():
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1)).float()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float32))
    return ebm_pp.EnergyModel(program, net)


def energy_of_a_fit(seed=0, made=None):
    fitted = ebm_pp.fit(
        made or model(), ROWS, config=ebm_pp.FitConfig(**{**vars(CONFIG), "seed": seed})
    )
    with torch.no_grad():
        return fitted.model.energy(ROWS)


@pytest.fixture(scope="module")
def alone():
    return energy_of_a_fit()


@pytest.fixture(autouse=True)
def left_as_it_was():
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(2.0))
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert not runtime._PYRO_STACK
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert bool(torch.tensor(1e-40) * 1)  # small numbers are not flushed
    pyro.clear_param_store()


def test_fits_in_two_threads_equal_the_fit_alone(alone):
    models = [model(), model()]  # made here: torch's initialisation is the process's own
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda made: energy_of_a_fit(made=made), models))
    assert all(torch.equal(energy, alone) for energy in found)


def test_joblib_with_threads(alone):
    found = joblib.Parallel(n_jobs=2, backend="threading")(
        joblib.delayed(energy_of_a_fit)(seed, made) for seed, made in ((0, model()), (3, model()))
    )
    assert torch.equal(found[0], alone)
    assert torch.equal(found[1], energy_of_a_fit(3))


def test_seeded_calls_in_two_threads():
    fitted = ebm_pp.fit(model(), ROWS, config=CONFIG)
    double = ebm_pp.fit(model().double(), ROWS, config=CONFIG)
    calls = {
        "log_z": lambda: ebm_pp.log_partition(fitted, 500, seed=0).value,
        "double": lambda: ebm_pp.log_partition(double, 500, seed=0).value,
        "diagnose": lambda: ebm_pp.diagnose(fitted, ROWS, n=500).evidence.log_z.value,
        "mh": lambda: ebm_pp.independence_mh(fitted, 400, seed=1).acceptance,
    }
    expected = {name: call() for name, call in calls.items()}
    with ThreadPoolExecutor(4) as pool:
        found = [(name, pool.submit(call)) for _ in range(10) for name, call in calls.items()]
        assert all(result.result() == expected[name] for name, result in found)


AROUND = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad off": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", AROUND)
def test_a_fit_is_the_same_wherever_it_is_called(name, alone):
    mode, made = torch.is_grad_enabled(), model()
    try:
        with AROUND[name]():
            assert torch.equal(energy_of_a_fit(made=made), alone)
    finally:
        torch.set_grad_enabled(mode)


def test_data_of_inference_mode_are_taken_and_its_parameters_refused(alone):
    with torch.inference_mode():
        rows = {"x": ROWS["x"].clone()}
        with pytest.raises(ebm_pp.ProgramError, match=r"made inside torch\.inference_mode"):
            model()
    fitted = ebm_pp.fit(model(), rows, config=CONFIG)
    with torch.no_grad():
        assert torch.equal(fitted.model.energy(ROWS), alone)


def test_a_default_dtype_of_the_callers_is_not_the_models(alone):
    torch.set_default_dtype(torch.float64)
    try:
        energy = energy_of_a_fit()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert energy.dtype == torch.float32
    assert torch.allclose(energy, alone, atol=1e-4)


def test_autocast_does_not_round_in_silence():
    fitted = ebm_pp.fit(model(), ROWS, config=CONFIG)
    calls = {
        "log_density": lambda: fitted.model.log_density(ROWS).sum().item(),
        "log_partition": lambda: ebm_pp.log_partition(fitted, 500, seed=0).value,
        "diagnose": lambda: ebm_pp.diagnose(fitted, ROWS, n=500).evidence.data.log_likelihood,
        "log_prob": lambda: ebm_pp.log_prob(fitted, ROWS, 500, seed=0).values.sum().item(),
    }
    expected = {name: call() for name, call in calls.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {name: call() for name, call in calls.items()} == expected


@pytest.mark.parametrize(
    ("more", "where"), [({"warm_start_steps": 10**6}, "warm start"), ({"rounds": 10**6}, "round")]
)
def test_an_interrupted_fit_can_be_used(more, where):
    config = ebm_pp.FitConfig(**{**vars(CONFIG), "patience": 10**6, **more})
    timer = threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        fitted = ebm_pp.fit(model(), ROWS, config=config)
    finally:
        timer.cancel()
    assert fitted.status is ebm_pp.Status.INTERRUPTED
    assert where in fitted.detail
    assert all(p.isfinite().all() for p in fitted.model.parameters())
    assert all(p.isfinite().all() for p in fitted.generator.parameters())
    assert torch.isfinite(torch.tensor(ebm_pp.log_partition(fitted, 500, seed=0).value))
    assert "Interrupted" in repr(fitted)


@pytest.fixture(scope="module")
def weighted():
    """A fit with one weight that means something, a network beside it, and calls on it."""

    def declared(net):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        w = pyro.param("w", torch.tensor(0.1))
        pyro.factor("f", -w * x.square().sum() - 0.1 * net(x).sum())

    with torch.random.fork_rng():
        net = nn.Linear(2, 3)
    net.requires_grad_(False)
    fitted = ebm_pp.fit(EnergyModel(declared, net), ROWS, config=CONFIG)
    calls = {
        "neutra_hmc": lambda: ebm_pp.neutra_hmc(
            fitted, 4, chains=1, warmup=4, max_tree_depth=2, seed=0
        ).log_density.tolist(),
        "standard_errors": lambda: str(ebm_pp.standard_errors(fitted, ROWS, parameters=["w"])),
        "log q": lambda: fitted.generator.log_prob(ROWS).tolist(),
        "draws": lambda: ebm_pp.importance_sample(fitted, 50, seed=0).log_weights.tolist(),
        "compiling": lambda: EnergyModel(declared, net).energy(ROWS).tolist(),
    }
    return fitted, {name: (call, call()) for name, call in calls.items()}


@pytest.mark.parametrize("name", AROUND)
def test_every_call_is_the_same_wherever_it_is_made(name, weighted):
    mode = torch.is_grad_enabled()
    for what, (call, expected) in weighted[1].items():
        try:
            with AROUND[name]():
                assert call() == expected, what
        finally:
            torch.set_grad_enabled(mode)


def test_rows_made_in_inference_mode_are_scored_with_gradients(weighted):
    fitted, _ = weighted
    with torch.inference_mode():
        rows = {"x": ROWS["x"].clone()}
    torch.testing.assert_close(fitted.model.log_density(rows), fitted.model.log_density(ROWS))


PLACES = {  # where the interrupt comes, and at which call
    "warm start, first step": ("torch.optim.Adam.step", 1),
    "warm start, later": ("torch.optim.Adam.step", 15),
    "energy step": ("torch.optim.Adam.step", 23),
    "pool": ("ebm_pp.training.draw_pool", 2),
    "scores": ("ebm_pp.training.scored", 1),
    "diagnosis": ("ebm_pp.training.diagnose_round", 2),
    "generator steps": ("ebm_pp.training.generator_steps", 1),
    "averaged parameters": ("ebm_pp.game.put", 1),
    "best parameters": ("ebm_pp.best.Best.restore", 1),
    "last diagnosis": ("ebm_pp.training.diagnose", 1),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_anywhere_after_the_checks(place, late, monkeypatch, alone):
    path, n = PLACES[place]
    owner, _, name = path.rpartition(".")
    original, calls = pkgutil.resolve_name(path), []

    def interrupted(*args, **kwargs):
        calls.append(0)
        if len(calls) == n and not late:
            raise KeyboardInterrupt
        result = original(*args, **kwargs)
        if len(calls) == n:
            raise KeyboardInterrupt
        return result

    made = model()
    with monkeypatch.context() as patch:
        patch.setattr(pkgutil.resolve_name(owner), name, interrupted)
        fitted = ebm_pp.fit(made, ROWS, config=CONFIG)
    assert len(calls) >= n
    assert fitted.status is ebm_pp.Status.INTERRUPTED
    for part in (fitted.model, fitted.generator):
        assert all(p.isfinite().all() for p in part.parameters())
    assert torch.isfinite(torch.tensor(ebm_pp.log_partition(fitted, 200, seed=0).value))
    assert torch.equal(energy_of_a_fit(), alone)  # nothing is left for the next
