"""The shipped recipes, one file each: RECIPE, and at the top of the file what it gave when it was run."""
