"""What the teacher and the verifier say of rollouts: the teacher of each prompt, the handshake, the requests, and the
scored batch that an objective reads.
"""

from vold_trainer.scoring.batch import ScoredBatch
from vold_trainer.scoring.scorer import Scorer
from vold_trainer.scoring.scores import RolloutScore, StepScores
from vold_trainer.scoring.teachers import Teacher, make_teachers
from vold_trainer.scoring.twins import check_twins

__all__ = ["RolloutScore", "ScoredBatch", "Scorer", "StepScores", "Teacher", "check_twins", "make_teachers"]
