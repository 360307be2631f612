"""A gateway to stock inference servers: the teacher's wire and rules, the servers' forward passes."""
