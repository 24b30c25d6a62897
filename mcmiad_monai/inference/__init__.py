"""From a study to its heatmap, and the files that are written for it."""
