"""NeMo: neural mesh models of contrastive features for 3D pose estimation.

Wang, Kortylewski and Yuille, ICLR 2021.
"""
