"""Version 1 of the contract, `vold.v1`."""
