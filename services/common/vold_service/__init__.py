"""What every server of vold does once: errors, limits, deadlines, the two faces, health, draining."""
