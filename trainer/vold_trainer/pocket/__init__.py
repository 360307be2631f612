"""The pocket world: problems, pictures of them, reasoning chains and models small enough for two CPU cores.

Everything the main job needs, with nothing to download: reasoning-gym makes the problems and scores the answers, and
the checkpoints beside this file hold a teacher that reasons and a base student that sees.
"""
