"""What all services of vold share: errors, limits, deadlines, the two faces, health, draining."""
