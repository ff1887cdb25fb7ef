"""NeMo: neural mesh models of contrastive features for 3D pose estimation (Wang, Kortylewski, Yuille, ICLR 2021)."""
