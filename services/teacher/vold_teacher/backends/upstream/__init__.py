"""A gateway in front of stock inference servers: the teacher's wire and rules, their forward passes."""
