"""`doctor`: checks everything that can be wrong, and names the cure of each problem."""
