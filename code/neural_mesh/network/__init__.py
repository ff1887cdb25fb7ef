"""The backbones that extract features, the bank of vertex features, and the contrastive losses."""
