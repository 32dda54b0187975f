"""Training of a pair (or of a student alone) on images that lie in memory.

Entry points, in the order in which a job uses them:

* `plan.build_plan(...)` -> `TrainPlan`: every hyperparameter resolved, nothing left to decide.
* `resident.build_split(...)`, `resident.ResidentData`: the uint8 images and labels of train, val
  and test.
* `loop.train(plan, data, student=..., teacher=..., observer=..., checkpoint_dir=...)` ->
  `TrainResult`.
* `observer.TrainObserver`: what a run calls back; may ask for a checkpoint or a stop.
* `checkpoint.CheckpointFolder`: where an interrupted run is found again; a run resumed from it ends
  with the same bytes in its adapter as one that was never interrupted.
* `determinism.make_deterministic(device)`: called once by a process that promises this on a GPU.

All randomness comes from `seeds.derive_seed(job seed, purpose, epoch, step)`; no generator state is
kept.
"""
