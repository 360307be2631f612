"""The verifier service: rewards for completions, computed in worker processes that can be killed."""
