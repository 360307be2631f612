"""The trainer: cold-start SFT on a teacher's traces, then GRPO with on-policy distillation, on text alone."""
