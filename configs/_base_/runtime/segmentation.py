# What every segmenter shares: mmseg's names, pictures and test-time augmentation, on top of the runtime of all runs.
_base_ = "default.py"
default_scope = "mmseg"
default_hooks = dict(
    logger=dict(interval=50, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=8000),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)
log_processor = dict(by_epoch=False, window_size=50)
visualizer = dict(type="SegLocalVisualizer", name="visualizer")
tta_model = dict(type="SegmenterTTA")
