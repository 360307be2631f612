"""The services that a run calls: reached by URL, or started and stopped with the run; and how a run waits for a service
that is away.

Import `shared`, for runs of several processes, by its own name: it imports torch.
"""

from vold_trainer.services.local import Services, open_services, teacher_client, verifier_client
from vold_trainer.services.outages import Outages

__all__ = ["Outages", "Services", "open_services", "teacher_client", "verifier_client"]
