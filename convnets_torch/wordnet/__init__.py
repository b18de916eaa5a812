"""The WordNet tree above the ImageNet classes."""
