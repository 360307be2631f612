"""Services that a run talks to: reached by URL, or started for it and stopped after it, and waited for where they go
away.

`shared` is for runs of several processes, and is imported by name: it brings torch.
"""

from vold_trainer.services.local import Services, open_services, teacher_client, verifier_client
from vold_trainer.services.outages import Outages

__all__ = ["Outages", "Services", "open_services", "teacher_client", "verifier_client"]
