"""Maps over pictures: how a pass is run, where cells lie, how they are read and written. `heatmaps` is the way in."""
