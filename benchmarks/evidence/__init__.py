"""The report: every committed result side by side, what was lost first."""
