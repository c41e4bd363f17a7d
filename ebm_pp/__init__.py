"""ebm_pp: energy-based models as Pyro programs, fitted without MCMC, sampled and diagnosed."""

from ebm_pp.chains import Chains, independence_mh
from ebm_pp.checkpoint import load, save
from ebm_pp.circle import Circle
from ebm_pp.comparison import compare
from ebm_pp.config import FitConfig
from ebm_pp.datatree import to_datatree
from ebm_pp.demonstrations import pad
from ebm_pp.density import EnergyModel
from ebm_pp.diagnostics import Report, diagnose
from ebm_pp.dynamics import Dynamics, Opaque, Space
from ebm_pp.energy_net import EnergyNet
from ebm_pp.environment import from_gymnasium
from ebm_pp.errors import CheckpointError, ConfigError, DataError, GeneratorError, ProgramError
from ebm_pp.fitted import Fit, Status
from ebm_pp.generator import FlowGenerator, Generator
from ebm_pp.neutra import neutra_hmc
from ebm_pp.partition import Estimate
from ebm_pp.policy import PolicyGenerator
from ebm_pp.sampling import (
    Draws,
    importance_sample,
    log_partition,
    log_prob,
    resample,
)
from ebm_pp.tilting import tilt
from ebm_pp.training import fit
from ebm_pp.trajectory import trajectory
from ebm_pp.trajectory_report import TrajectoryReport, shaped, trajectory_report
from ebm_pp.uncertainty import Uncertainty, standard_errors

__version__ = "0.1.0"

__all__ = [
    "Chains",
    "CheckpointError",
    "Circle",
    "ConfigError",
    "DataError",
    "Draws",
    "Dynamics",
    "EnergyModel",
    "EnergyNet",
    "Estimate",
    "Fit",
    "FitConfig",
    "FlowGenerator",
    "Generator",
    "GeneratorError",
    "Opaque",
    "PolicyGenerator",
    "ProgramError",
    "Report",
    "Space",
    "Status",
    "TrajectoryReport",
    "Uncertainty",
    "compare",
    "diagnose",
    "fit",
    "from_gymnasium",
    "importance_sample",
    "independence_mh",
    "load",
    "log_partition",
    "log_prob",
    "neutra_hmc",
    "pad",
    "resample",
    "save",
    "shaped",
    "standard_errors",
    "tilt",
    "to_datatree",
    "trajectory",
    "trajectory_report",
]
