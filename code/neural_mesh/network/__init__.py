"""The network, the feature bank and the losses."""
