"""Confinement of the processes that run text which a model wrote: see `confine`."""
