"""Energy programs with known answers, one per file.

`gaussian`, `planar`, `many_well` and `recipe` come with exact draws and an exact log partition, so
that a fit can be checked to within its standard error. `wind` is real: hourly weather at three
airports. Every program declares one draw: `pyro.sample` sites are the base measure, `pyro.factor`s
are minus the energy. Sites are dictionaries of tensors with a leading number of draws `n`.
"""
