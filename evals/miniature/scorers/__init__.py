"""The scorers of the miniature: by name what `evals.scorers` has for photographs, on the small models that ship, and the exact measures of a world that is known."""
