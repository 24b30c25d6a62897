"""From a study to its heatmap, and what a study leaves on disk."""
