"""The verifier service: rewards for completions, checked in worker processes that can be killed."""
