"""The shipped recipes, one file each: RECIPE, and a docstring with command, machine, steps and result."""
