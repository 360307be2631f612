"""How items reach workers and verdicts come back: the engine that both faces call, its pools of processes, and the
workers.

The fork server is a program of this package, and must not hold what the service holds: modules are imported by name.
"""
