"""Render-and-compare on a GPU, by the kernels of `kernels_triton`.

`kernels_triton` has two functions for the host, and takes the named tuples of `scene` with tensors
on the device:

    compare(mesh: MeshArrays, focal: float, scores: MapScores, views: Views) -> Gradients
    advance(mesh: MeshArrays, focal: float, scores: MapScores, candidates: Candidates,
            rules: StepRules, stage: Stage, path: Tensor) -> None

mesh.vertices and .faces are what `kernels_triton.place_mesh` returns, low, high and samples are
NumPy arrays, is_cuboid is a bool. scores.scores and .clutter are contiguous float32; without a
clutter, `clutter` is the scores again and `use_clutter` False. views: contiguous float32.
candidates: contiguous, float64 and int64. path: [B, K, rows, 7] float64.
"""
