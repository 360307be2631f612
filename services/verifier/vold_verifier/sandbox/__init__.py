"""What holds a process in that runs text which a model wrote: see `confine`."""
