"""`doctor`: checks settings, machine, targets and agent, and shows how to fix each problem."""
