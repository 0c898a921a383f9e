"""Shows what a run does: metrics, progress, plots and the closing table."""
