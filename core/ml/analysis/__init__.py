"""What is measured and drawn of a finished run.

* `inputs.AnalysisInputs`: the run's models, images and history, with predictions made once.
* `evaluation.build_evaluation(...)`: the report behind `GET /v1/models/{id}/evaluation`.
* `figures.registry.build_figure(...)`: one figure, as data and as a picture.

Beneath them, each on plain arrays: `predictions`, `classification`, `calibration`, `mistakes`,
`agreement`, `weights`, `distributions`, `attention`, `embedding`.

Everything here looks only: no weight is changed, and nothing that it finds flows back into
training. The same run gives the same bytes.
"""
