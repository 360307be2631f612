"""The outputs of a run: its folder, checkpoints, the exported student, the dashboard and experiment trackers."""
