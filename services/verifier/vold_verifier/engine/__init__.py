"""The engine that both faces call, its pools of worker processes, and the workers.

Import the modules by name: the fork server runs as a program of this package, and must not load the service's modules.
"""
